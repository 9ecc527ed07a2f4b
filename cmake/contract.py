"""Print the contract that a library of these sources keeps: see stprune/_contract.py. Needs the standard library only.

Usage: python contract.py [folder of the package]
"""

import ast
import importlib.util
import pathlib
import sys
import types

PACKAGE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[1] / "stprune")


class Names(dict):
    """A file's top-level names. Each is evaluated when it is first asked for; one that needs another library is a NameError."""

    def __init__(self, path):
        super().__init__(__builtins__={})
        self.expressions, self.imports = {}, {}
        self.body = ast.parse(path.read_text()).body
        for node in self.body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self.bind(target, node.value)
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "stprune":
                self.imports.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})

    def bind(self, target, value):
        if isinstance(target, ast.Name):
            self.expressions[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=True):
                self.bind(one, part)

    def __missing__(self, name):
        if name in self.expressions:
            self[name] = self.evaluate(self.expressions[name])
        elif name in self.imports:
            module, imported = self.imports[name]
            inner = names_of(f"{module}.{imported}")
            self[name] = Module(inner) if inner is not None else names_of(module)[imported]
        else:
            raise NameError(name)
        return self[name]

    def evaluate(self, expression):
        return eval(compile(ast.Expression(expression), "contract", "eval"), {"__builtins__": {}}, self)


class Module(types.SimpleNamespace):
    """What `from package import module` binds."""

    def __init__(self, names):
        self._names = names

    def __getattr__(self, name):
        return self._names[name]


FILES = {}


def names_of(module):
    """The names of stprune's module of this dotted name; None where there is no such file."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if path not in FILES:
        FILES[path] = Names(path) if path.is_file() else None
    return FILES[path]


def is_define(node):
    function = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return (isinstance(function, ast.Name) and function.id == "define") or (
        isinstance(function, ast.Attribute) and function.attr == "define"
    )


def main():
    spec = importlib.util.spec_from_file_location("contract", PACKAGE / "_contract.py")
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    schemas, constants = [], {}
    for path in sorted(path for package in contract.PACKAGES for path in (PACKAGE / package).glob("*.py")):
        module = ".".join(("stprune", *path.relative_to(PACKAGE).with_suffix("").parts))
        names = names_of(module)
        schemas += [names.evaluate(node.value.args[0]) for node in names.body if is_define(node)]
        for name in {*names.expressions, *names.imports}:
            try:
                value = names[name] if name.isupper() else None
            except NameError:  # made of another library's objects: no constant that C++ could repeat
                continue
            if contract.is_shared(name, value):
                constants[f"{module}.{name}"] = value
    print(contract.digest(schemas, constants))


main()
