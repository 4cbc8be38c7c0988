from .page import write as write

__all__ = ["write"]
