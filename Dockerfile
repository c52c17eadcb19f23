# docker build -t mpu .
# docker run -d --name mpu --stop-timeout 60 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#   -p 127.0.0.1:8025:8025 -v mpu-data:/var/lib/mpu -v /srv/pickup:/var/spool/mpu mpu
# docker exec mpu cat /var/lib/mpu/api-key
#
# It runs as uid and gid 10025, which must be able to write in /srv/pickup and what lies under it:
#   chgrp 10025 /srv/pickup && chmod 2770 /srv/pickup
# --stop-timeout: MPU_GRACE_SECONDS (25) for what is in flight, and up to 15 for the last commits; raise both together.
# With --read-only a copy can be written to the volumes only; docker cp takes it from there:
#   docker exec mpu mpu backup --overwrite /var/lib/mpu/copy && docker cp mpu:/var/lib/mpu/copy mpu-copy
# Back again, with the service stopped: docker run --rm -v mpu-data:/var/lib/mpu mpu restore /var/lib/mpu/copy
#
# With --cap-add LEASE --user 0 (a lease on other users' files needs the capability in effect, which only root gets in a
# container) files are taken the moment they are closed even where no event is seen; without it they rest two seconds.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/mpu \
 && /opt/mpu/bin/python -m pip install --no-deps --require-hashes -r requirements.lock \
 && python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-deps --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY core core
COPY migrations migrations
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/mpu/bin/python -m pip install --no-deps --no-index /wheels/*.whl \
 && /opt/mpu/bin/python -m pip uninstall -q -y pip setuptools \
 && /opt/mpu/bin/python -m compileall -q -j 0 /opt/mpu/lib

FROM python:3.11-slim
RUN groupadd --gid 10025 mpu \
 && useradd --uid 10025 --gid mpu --no-create-home --home-dir /var/lib/mpu --shell /usr/sbin/nologin mpu \
 && install -d -o mpu -g mpu -m 0700 /var/lib/mpu \
 && install -d -o mpu -g mpu -m 2770 /var/spool/mpu
COPY --from=build /opt/mpu /opt/mpu
ENV PATH=/opt/mpu/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPU_HOST=0.0.0.0 \
    MPU_DATA_DIR=/var/lib/mpu \
    MPU_PICKUP_ROOTS=/var/spool/mpu \
    MPU_LOG_FORMAT=json
USER mpu
WORKDIR /var/lib/mpu
VOLUME ["/var/lib/mpu", "/var/spool/mpu"]
EXPOSE 8025
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["mpu", "health"]
ENTRYPOINT ["mpu"]
CMD ["serve"]
