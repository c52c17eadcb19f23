"""The promises under damage (`make chaos`): kills, power cuts, full disks, slow writers. See __main__.py."""
