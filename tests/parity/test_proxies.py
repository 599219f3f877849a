"""Every proxy against its definition, computed slowly: masked float64 weights, plain autograd, sequence by sequence."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from masked_reference import masked, masks
from proxy_setting import ProxySetting

from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.few_steps import FewSteps
from tracenas.space.architecture import Architecture

pytestmark = pytest.mark.parity

GATES = {"llama": "mlp.gate_proj", "phi3": "mlp.gate_up_proj", "gpt_neox": "mlp.dense_h_to_4h"}


@pytest.fixture(scope="module", params=["llama", "phi3", "gpt_neox"])
def setting(request: pytest.FixtureRequest) -> ProxySetting:
    return ProxySetting(request.param)


class Slow:
    """The definitions, on a candidate of masked float64 weights in the base's order."""

    def __init__(self, setting: ProxySetting, arch: Architecture) -> None:
        self.setting, self.arch = setting, arch
        self.kept = setting.ordering.kept(setting.blocks, arch)
        self.model, self.tokens = setting.reference, setting.tokens

    def active(self) -> Iterator[tuple[int, Any, Any, torch.Tensor, torch.Tensor]]:
        """(block, sub-block, projection, kept rows, kept columns)."""
        for i, block in enumerate(self.setting.blocks):
            for sub in block.sub_blocks:
                ids = self.kept.get((i, sub.spec.name))
                for p in sub.projections if ids is not None else ():
                    rows, columns = masks(p, sub.spec.units, ids)
                    yield i, sub, p, rows.bool(), columns.bool()

    def matrices(self) -> dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]:
        """W [rows, columns] and the gradients of every sequence's loss [N, rows, columns], kept entries alone."""
        gradients: dict[Any, list[np.ndarray]] = {}
        weights: dict[Any, np.ndarray] = {}
        with masked(self.model, self.setting.blocks, self.kept) as parameters, torch.enable_grad():
            for row in self.tokens:
                loss = self.model(input_ids=row[None], labels=row[None], use_cache=False).loss
                found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
                for i, sub, p, rows, columns in self.active():
                    g = found[i, sub.spec.name, p.path][rows][:, columns]
                    gradients.setdefault((i, p.path), []).append(g.numpy())
                    w = parameters[i, sub.spec.name, p.path].detach()
                    weights[i, p.path] = w[rows][:, columns].numpy()
        return {key: (weights[key], np.stack(g)) for key, g in gradients.items()}

    def outputs(self, paths: dict[Any, str], arch: bool = True) -> tuple[dict[Any, torch.Tensor], torch.Tensor]:
        """What modules return, [N, T, D], and the logits; of the base if not `arch`."""
        found: dict[Any, torch.Tensor] = {}

        def keep(key: Any) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                found[key] = output[0] if isinstance(output, tuple) else output

            return hook

        with masked(self.model, self.setting.blocks, self.kept if arch else self.base_kept()), torch.no_grad():
            handles = [self.model.get_submodule(p).register_forward_hook(keep(k)) for k, p in paths.items()]
            logits = self.model(self.tokens).logits
        for handle in handles:
            handle.remove()
        return found, logits

    def base_kept(self) -> Any:
        return self.setting.ordering.kept(self.setting.blocks, self.setting.space.base)


def gradient_values(slow: Slow) -> dict[str, float]:
    """The proxies of weight gradients."""
    out = {"synaptic_saliency": 0.0, "pruner_zero": 0.0, "lp_zero": 0.0, "zico": 0.0}
    matrices = slow.matrices()
    pairs = len(slow.tokens) // 2
    for w, g in matrices.values():
        size = np.abs(g)
        low, high = size.min(axis=(1, 2), keepdims=True), size.max(axis=(1, 2), keepdims=True)
        soft = np.exp(g) / np.exp(g).sum(axis=1, keepdims=True)
        out["synaptic_saliency"] += np.abs(w * g).sum(axis=(1, 2)).mean()
        out["pruner_zero"] += (w**2 * (size - low) / (high - low)).sum(axis=(1, 2)).mean()
        out["lp_zero"] += ((w**2).mean() + (soft**2).mean(axis=(1, 2)).mean()) / len(matrices)
        for m in range(pairs):
            two = g[2 * m : 2 * m + 2]
            ratio = np.abs(two).mean(axis=0) / np.where(two.std(axis=0) > 0, two.std(axis=0), np.inf)
            out["zico"] += math.log(ratio.sum()) / pairs
    return out


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_weight_gradients(setting: ProxySetting, micro_batch: int) -> None:
    names = ["synaptic_saliency", "pruner_zero", "lp_zero", "zico"]
    panel = setting.panel([*names, "phi"], ScoringSettings(0, 0, micro_batch))
    for arch in setting.architectures(3):
        scores, slow = panel.measure(arch), gradient_values(Slow(setting, arch))
        for name in names:
            # the ratio of nearly equal gradients has few correct digits in float32
            assert scores[name].value == pytest.approx(slow[name], rel=1e-3 if name == "zico" else 1e-5), name


def test_traces(setting: ProxySetting) -> None:
    names = ["phi", "phi_unweighted", "phi_cosine", "phi_dot", "grad_norm"]
    panel = setting.panel(names, ScoringSettings(0, 0, 2))

    def traces(slow: Slow) -> dict[Any, np.ndarray]:
        """Mean gradient of every sub-block in the base's coordinates, removed ones 0."""
        out: dict[Any, list[np.ndarray]] = {}
        found = {key: g.mean(axis=0) for key, (_, g) in slow.matrices().items()}
        for i, sub, p, rows, columns in slow.active():
            full = np.zeros((p.rows, p.columns))
            full[np.ix_(rows.numpy(), columns.numpy())] = found[i, p.path]
            out.setdefault((i, sub.spec.name), []).append(full.ravel())
        return {key: np.concatenate(parts) for key, parts in out.items()}

    base = traces(Slow(setting, setting.space.base))
    for arch in setting.architectures(3):
        g = traces(Slow(setting, arch))
        pairs = [
            ((i, sub.spec.name), kept / sub.spec.units)
            for i, (block, layer) in enumerate(zip(setting.blocks, arch.layers, strict=True))
            for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True)
        ]
        r = {key: share for key, share in pairs if share}
        assert r.keys() == g.keys()
        rho = {key: float(np.corrcoef(g[key], base[key])[0, 1]) for key in g}
        cosine = {k: float(g[k] @ base[k] / np.linalg.norm(g[k]) / np.linalg.norm(base[k])) for k in g}
        slow = {
            "phi": sum(r[k] * rho[k] for k in g),
            "phi_unweighted": sum(rho.values()),
            "phi_cosine": sum(r[k] * cosine[k] for k in g),
            "phi_dot": sum(r[k] * float(g[k] @ base[k]) for k in g),
            "grad_norm": float(np.sqrt(sum(v @ v for v in g.values()))),
        }
        for name, score in panel.measure(arch).items():
            assert score.value == pytest.approx(slow[name], rel=1e-5, abs=1e-5), name


def test_loss_and_divergence(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = setting.tokens
    stored = setting.panel(["loss", "kl"], ScoringSettings(0, 0, 2))
    monkeypatch.setattr("tracenas.scoring.observers.divergence.PROBABILITY_BYTES", 0)
    again = setting.panel(["loss", "kl"], ScoringSettings(0, 0, 3))
    for arch in setting.architectures(3):
        slow = Slow(setting, arch)
        q, p = (slow.outputs({}, arch=own)[1][:, :-1].log_softmax(-1) for own in (True, False))
        loss = float(q.gather(-1, tokens[:, 1:, None]).mean())
        kl = (p.exp() * (p - q)).sum(-1).mean(-1)
        for panel in (stored, again):
            run = panel.run(arch)
            assert run.scores["loss"].value == pytest.approx(loss, rel=1e-5)
            assert run.scores["kl"].value == pytest.approx(-float(kl.mean()), rel=1e-4)
            assert run.plain is not None
            assert run.plain.kls == pytest.approx(kl.tolist(), rel=1e-4)
            assert -np.mean(run.plain.losses) == pytest.approx(loss, rel=1e-5)


def test_predicted_rise(setting: ProxySetting) -> None:
    """The table's entries at the candidate's widths, looked up one by one, a bypass at width 0."""
    panel = setting.panel(["fisher"], ScoringSettings(0, 0, 2))
    bypassed = 0
    for arch in setting.architectures(3):
        total = 0.0
        for i, (block, layer) in enumerate(zip(setting.blocks, arch.layers, strict=True)):
            for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True):
                one = setting.table.costs[i, sub.spec.name]
                total += dict(zip(one.widths.tolist(), one.rise.tolist(), strict=True))[kept]
                bypassed += kept == 0
        assert panel.measure(arch)["fisher"].value == pytest.approx(-total, rel=1e-12)
    assert bypassed


def test_compensated_candidates_are_compared_with_the_plain_base(setting: ProxySetting) -> None:
    panel = setting.panel(["loss_compensated", "kl_compensated"], ScoringSettings(0, 0, 2))
    arch = setting.architectures(3)[2]
    with torch.no_grad():
        p = setting.net.model(setting.tokens).logits[:, :-1].log_softmax(-1)
        with setting.net.realise(arch, setting.how) as model:
            output = model(input_ids=setting.tokens, labels=setting.tokens)
    q = output.logits[:, :-1].log_softmax(-1)
    scores = panel.measure(arch)
    assert scores["loss_compensated"].value == pytest.approx(-float(output.loss), rel=1e-5)
    assert scores["kl_compensated"].value == pytest.approx(-float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_activation_codes(setting: ProxySetting) -> None:
    """K_ij counts the bits that agree, bit by bit; all positions are read in so short a sequence."""
    panel = setting.panel(["naswot"], ScoringSettings(0, 0, 2))
    gate = GATES[setting.reference.config.model_type]
    for arch in setting.architectures(3):
        slow = Slow(setting, arch)
        rows = {i: r for i, _, p, r, _ in slow.active() if p.path == gate}
        found, _ = slow.outputs({i: f"{setting.blocks[i].path}.{gate}" for i in rows})
        bits = []
        for i, kept in rows.items():
            channels = kept[: len(kept) // 2] if gate == "mlp.gate_up_proj" else kept
            bits.append((found[i][..., : len(channels)][..., channels] > 0).flatten(1).numpy())
        codes = np.concatenate(bits, axis=1)
        kernel = np.array([[(a == b).sum() for b in codes] for a in codes], dtype=float)
        assert panel.measure(arch)["naswot"].value == pytest.approx(np.log(np.linalg.det(kernel)), rel=1e-9)


def test_feature_correlations(setting: ProxySetting) -> None:
    panel = setting.panel(["meco"], ScoringSettings(0, 0, 2))
    for arch in setting.architectures(3):
        slow = Slow(setting, arch)
        paths = {(i, s.spec.name): f"{setting.blocks[i].path}.{s.module}" for i, s, _, _, _ in slow.active()}
        found, _ = slow.outputs(paths)
        expected = sum(np.linalg.eigvalsh(np.corrcoef(x.flatten(0, 1).numpy().T))[0] for x in found.values())
        assert panel.measure(arch)["meco"].value == pytest.approx(expected, rel=1e-4)


def test_hidden_states(setting: ProxySetting) -> None:
    panel = setting.panel(["hidden_alignment"], ScoringSettings(0, 0, 2))
    paths = {i: b.path for i, b in enumerate(setting.blocks)}
    for arch in setting.architectures(3):
        own, base = (Slow(setting, arch).outputs(paths, arch=flag)[0] for flag in (True, False))
        cosines = [torch.cosine_similarity(own[i], base[i], dim=-1).mean() for i in paths]
        expected = float(torch.stack(cosines).mean())
        assert panel.measure(arch)["hidden_alignment"].value == pytest.approx(expected, rel=1e-5)


def test_parameters(setting: ProxySetting) -> None:
    panel = setting.panel(["num_params"], ScoringSettings(0, 0, 2))
    for arch in setting.architectures(3):
        with setting.net.realise(arch) as model:
            count = sum(p.numel() for p in model.parameters())
        assert panel.measure(arch)["num_params"].value == count


@pytest.mark.parametrize("name", ["few_steps", "few_steps_compensated"])
def test_few_steps(setting: ProxySetting, name: str) -> None:
    """Training a copy of the candidate with torch's own pieces; what it was made of stays as it was."""
    recipe = FewSteps(steps=3, learning_rate=1e-3, batch=2)
    panel = setting.panel([name], ScoringSettings(0, 0, 2, recipe))
    ((_, how, _),) = panel._passes
    train, held = setting.tokens[:3], setting.tokens[3:]
    before = copy.deepcopy(setting.net.model.state_dict())
    for arch in setting.architectures(2):
        with setting.net.realise(arch, how) as model:
            copied = copy.deepcopy(model)
        blocks = [p for b in setting.blocks for p in copied.get_submodule(b.path).parameters()]
        optimizer = torch.optim.AdamW([p.requires_grad_() for p in blocks], 1e-3, betas=(0.9, 0.95), weight_decay=0)
        for rows in ([0, 1], [2, 0], [1, 2]):
            optimizer.zero_grad()
            copied(input_ids=train[rows], labels=train[rows]).loss.backward()
            optimizer.step()
        expected = -float(copied(input_ids=held, labels=held).loss.detach())
        for _ in range(2):
            assert panel.measure(arch)[name].value == pytest.approx(expected, abs=2e-4)
    after = setting.net.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
