"""What configs name: networks, losses, damages, optimizers; and the files of one's own that add to them, plugins.

Only the command line (`--plugins FILE`) and one's own program load a plugin. Where a config, a run folder or a file of
weights names one, it is mentioned in an error, and never run. Does not import torch.
"""

from __future__ import annotations

import collections.abc
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from srcnn.runtime.errors import UserError, did_you_mean
from srcnn.runtime.files import sha256_of

MemberT = TypeVar("MemberT", bound=Callable[..., Any])
NEARLY = 0.5  # how similar a name is to one that is suggested for it, 0..1
HINT = "one of your own is registered by a Python file given with --plugins (docs/extending.md)"
_loaded: dict[str, Path] = {}  # plugins by the names of their modules


class NotRegistered(UserError):
    """A name that nothing is registered under."""


class Registry(dict[str, MemberT], Generic[MemberT]):
    """Functions or classes of one kind, by their names. The registry itself is the decorator that adds one.

    Args:
        kind: what they are, for messages: "loss".
        num_inputs: how many arguments come first that are not settings.
        settings_of: gives the callable whose arguments are the settings; by default it is the member itself.

    Attributes:
        origins: of each member the plugin that registered it, {file name: SHA-256 of the file}; {} for the package's.
    """

    def __init__(
        self, kind: str, num_inputs: int = 0, settings_of: Callable[[MemberT], Callable[..., Any]] = lambda it: it
    ) -> None:
        self.kind, self.num_inputs, self._settings_of = kind, num_inputs, settings_of
        self.origins: dict[str, dict[str, str]] = {}

    def __call__(self, member: MemberT) -> MemberT:
        """Registers `member` under its name.

        Raises:
            UserError: another module has registered the name.
        """
        name, module = member.__name__, member.__module__
        known = self.get(name)
        if known and known.__module__ != module:
            raise UserError(f"{module}: {known.__module__} has a {self.kind} named {name} already; rename yours")
        self[name] = member
        file = getattr(sys.modules.get(module), "__file__", None) if self.is_own(name) else None
        self.origins[name] = {Path(file).name: sha256_of(Path(file))} if file else {}
        return member

    def is_own(self, name: str) -> bool:
        """Whether the member is one of the user's own, and not the package's."""
        return not self[name].__module__.startswith("srcnn.")

    def __missing__(self, name: str) -> NoReturn:
        raise NotRegistered(f"no {self.kind} is called {name!r:.99}{did_you_mean(name, self, NEARLY)}; known: "
                            f"{', '.join(sorted(self))}; {HINT}")

    def settings(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values`, as from YAML or JSON, as what the member's type hints ask for.

        Raises:
            UserError: an unknown setting, one that is missing, or a value of another type.
        """
        function = self._settings_of(self[name])
        is_class = inspect.isclass(function)  # a dataclass, whose inherited fields have hints of other modules
        try:
            parameters = list(inspect.signature(function, eval_str=not is_class).parameters.values())[self.num_inputs :]
            kinds = get_type_hints(function) if is_class else {it.name: it.annotation for it in parameters}
        except NameError as error:  # imported where TYPE_CHECKING alone
            raise UserError(f"{self.kind} {name}: its type hints: {error}; import it at run time too") from error
        parameters = [it for it in parameters if it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)]
        known = [parameter.name for parameter in parameters]
        for key in values:
            if key not in known:
                raise UserError(f"{self.kind} {name}: no setting {key!r:.99}{did_you_mean(key, known, NEARLY)}; "
                                f"its settings: {', '.join(known) or 'none'}")
        if missing := [it.name for it in parameters if it.default is it.empty and it.name not in values]:
            raise UserError(f"{self.kind} {name}: needs a value for {', '.join(missing)}")
        try:
            return {key: as_kind(value, kinds[key], key) for key, value in values.items()}
        except UserError as error:
            raise UserError(f"{self.kind} {name}: {error}") from error


def as_kind(value: Any, kind: Any, name: str) -> Any:
    """A plain value, as YAML and JSON have it, as the type `kind`: a list becomes a tuple, a whole number a float.

    Raises:
        UserError: it is of another type, or a float that is not finite; `name` says which.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        for part in parts:
            try:
                return as_kind(value, part, name)
            except UserError:
                continue
    elif origin is Literal:
        if value in parts:
            return value
    elif origin in (tuple, list, collections.abc.Sequence) and isinstance(value, (list, tuple)):
        if origin is tuple and parts and parts[-1] is not Ellipsis:
            if len(parts) == len(value):
                return tuple(as_kind(item, part, name) for item, part in zip(value, parts))
        else:
            items = [as_kind(item, parts[0] if parts else Any, name) for item in value]
            return tuple(items) if origin is tuple else items
    elif origin is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif origin in (Any, inspect.Parameter.empty) or value is None and origin is type(None):
        return value
    elif type(value) is origin is not float or (
            inspect.isclass(origin) and origin not in (int, float) and isinstance(value, origin)):
        return value
    raise UserError(f"{name} {value!r:.99}: expected {getattr(kind, '__name__', kind) if not parts else kind}")


def load_plugins(files: Iterable[str | Path]) -> None:
    """Runs Python files, each once, that register networks, losses, damages or optimizers.

    Raises:
        UserError: no such file, two of the same name, or one that cannot import something.
        Exception: whatever else the file raises.
    """
    for file in files:
        path = Path(os.path.expanduser(file)).resolve()
        name = f"plugin_{path.stem}"
        if _loaded.get(name) == path:
            continue
        if path.suffix != ".py" or not path.is_file():
            raise UserError(f"--plugins {file}: expected the path of a Python file, NAME.py")
        if name in _loaded:
            raise UserError(f"--plugins {file}: {_loaded[name]} has the same name; rename one of them")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, ImportError):  # which `extra` would take for a package of ours
                raise UserError(f"--plugins {file}: {error}") from error
            raise
        _loaded[name] = path


def loaded_plugins() -> list[str]:
    """The paths of the plugins that this process has loaded, for `load_plugins` in another one."""
    return list(map(str, _loaded.values()))
