"""Every proxy in a line: what it is computed from, what has to be measured, and where it stands in the literature."""

from tracenas.proxies.activations import hidden_alignment, meco, naswot
from tracenas.proxies.losses import (
    divergences,
    few_steps,
    losses,
    negative_kl,
    negative_loss,
    negative_rise,
    num_params,
)
from tracenas.proxies.measurement import Proxy
from tracenas.proxies.phi import grad_norm, phi, phi_cosine, phi_dot, phi_unweighted
from tracenas.proxies.weights import lp_zero, pruner_zero, synaptic_saliency, zico
from tracenas.registry import Registry

__all__ = ["PROXIES"]

_TRACE, _GRADIENTS = frozenset({"trace"}), frozenset({"weight_gradients"})
_LOGITS, _STEPS, _REFITTED = frozenset({"base_logits"}), frozenset({"steps"}), frozenset({"compensated"})
_CODES, _FEATURES, _HIDDEN, _NOTHING = (frozenset(n) for n in ({"codes"}, {"features"}, {"hidden"}, set[str]()))
_OURS, _REFIT = "tracenas, docs/proxies.md", "tracenas, docs/compensation.md"

PROXIES: Registry[Proxy] = Registry("proxy")

for _proxy in (
    Proxy("phi", phi, _TRACE, "TraceNAS §3.4"),
    Proxy("phi_compensated", phi, _TRACE | _REFITTED, _REFIT),
    Proxy("phi_unweighted", phi_unweighted, _TRACE, "TraceNAS §C.2"),
    Proxy("phi_cosine", phi_cosine, _TRACE, "TraceNAS §C.2"),
    Proxy("phi_dot", phi_dot, _TRACE, "TraceNAS §C.2"),
    Proxy("grad_norm", grad_norm, _TRACE, "Abdelfattah et al. 2021, arXiv 2101.08134, §3.2"),
    Proxy("loss", negative_loss, _NOTHING, "baseline", losses),
    Proxy("loss_compensated", negative_loss, _REFITTED, _REFIT, losses),
    Proxy("kl", negative_kl, _LOGITS, "baseline", divergences),
    Proxy("kl_compensated", negative_kl, _LOGITS | _REFITTED, _OURS, divergences),
    Proxy("few_steps", few_steps, _STEPS, _OURS),
    Proxy("few_steps_compensated", few_steps, _STEPS | _REFITTED, _OURS),
    Proxy("fisher", negative_rise, frozenset({"sensitivity"}), "tracenas, docs/closed-form.md"),
    Proxy("synaptic_saliency", synaptic_saliency, _GRADIENTS, "Tanaka et al. 2020, arXiv 2006.05467, §4"),
    Proxy("pruner_zero", pruner_zero, _GRADIENTS, "Dong et al. 2024, arXiv 2406.02924; TraceNAS §C.1"),
    Proxy("lp_zero", lp_zero, _GRADIENTS, "Dong et al. 2024, arXiv 2410.04808, and its published code"),
    Proxy("zico", zico, _GRADIENTS, "Li et al. 2023, arXiv 2301.11300, §3"),
    Proxy("naswot", naswot, _CODES, "Mellor et al. 2021, arXiv 2006.04647, §3"),
    Proxy("meco", meco, _FEATURES, "Jiang et al. 2023, NeurIPS, MeCo, §4"),
    Proxy("hidden_alignment", hidden_alignment, _HIDDEN, _OURS),
    Proxy("num_params", num_params, _NOTHING, "baseline; TraceNAS Table 1"),
):
    PROXIES.add(_proxy.name, _proxy)
