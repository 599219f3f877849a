"""Random expressions, for hypothesis."""

from hypothesis import strategies as st

from tracenas.symbolic import Expression
from tracenas.symbolic.tree import ARITY, call, constant, variable


def expressions(depth: int = 4, *, constants: bool = True) -> st.SearchStrategy[Expression]:
    leaves = st.sampled_from("WGX").map(variable)
    if constants:
        leaves |= st.floats(-3, 3, width=32).map(constant)

    def grown(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.sampled_from(sorted(ARITY)).flatmap(
            lambda name: st.tuples(*[inner] * ARITY[name]).map(lambda args: call(name, *args))
        )

    return st.recursive(leaves, grown, max_leaves=2**depth)
