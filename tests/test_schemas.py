"""What holds for the schema of every op."""

import torch

import stprune  # noqa: F401


def schemas():
    found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("stprune::")]
    assert len(found) > 20
    return found


def test_no_schema_holds_a_string():
    """The stable ABI's conversion of a string leaks 48 bytes a call, forward and backward."""
    for schema in schemas():
        for argument in [*schema.arguments, *schema.returns]:
            assert "str" not in str(argument.type), schema


def test_no_op_that_writes_has_an_argument_that_inductor_takes_for_its_own():
    """It hands arguments of such ops by name to a function that has a `node` itself (torch 2.13), and stops."""
    for schema in schemas():
        if schema.is_mutable:
            assert "node" not in [argument.name for argument in schema.arguments], schema
