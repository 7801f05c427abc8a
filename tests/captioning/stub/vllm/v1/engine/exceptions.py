"""See ``vllm``."""


class EngineDeadError(Exception):
    """The engine has died, and with it every question after."""
