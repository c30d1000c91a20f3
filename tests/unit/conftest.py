from support.checkpoints import folder, trained  # noqa: F401 - fixtures
