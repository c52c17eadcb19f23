"""What providers ask for, under the names that an account's `preset` takes."""

from __future__ import annotations

from fastapi import APIRouter

from api.openapi import ACCOUNTS, operation
from api.schemas.base import ListOut
from api.schemas.presets import PresetPublic
from api.security import GuardedRoute
from core.domain.presets import PRESETS
from core.runtime.views import Scope

router = APIRouter(tags=[ACCOUNTS], route_class=GuardedRoute)


@router.get(
    "/account-presets",
    **operation(
        "list_account_presets",
        Scope.READ,
        "List presets of providers",
        text="With `preset` an account takes these settings where it names none itself; what it names wins. `note` "
        "says what is needed at the provider, and where to find it.",
    ),
)
async def list_account_presets() -> ListOut[PresetPublic]:
    return ListOut[PresetPublic](items=[PresetPublic.of(preset) for preset in PRESETS.values()])
