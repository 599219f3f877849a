"""What the card says about serving: only commands that apply; and what vLLM asks of a checkpoint's configuration."""

import ast
import json
import pickle
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from pruned_cases import SHAPES, cut, dense_model

from tracenas.families import FAMILIES, config_family
from tracenas.models.checkpoints.serving import PLUGIN_FAMILIES, STOCK_VLLM_FAMILIES, serving_section, with_serving
from tracenas.models.shipped import decoder_only, encoder_decoder
from tracenas.models.shipped.checkpoint_code import CODE_FILE, class_names
from tracenas.models.shipped.heterogeneous import build
from tracenas.pipeline.serving import gguf_layout
from tracenas.recovery.card import with_section

WHOLE = {str(i): {"num_attention_heads": i + 1} for i in range(3)}
REMOVED = {**WHOLE, "1": {"skip": ["attention"]}, "2": {"skip": ["mlp"]}}


def config(family: str = "llama", layers: dict[str, Any] = WHOLE) -> dict[str, Any]:
    return {"model_type": f"tracenas_{family}", "base_model_type": family, "per_layer_config": layers}


# --- the section ----------------------------------------------------------------------------------


def test_stock_vllm_serves_what_has_attention_everywhere() -> None:
    text = serving_section("mine", config())
    assert "vllm serve mine --trust-remote-code" in text and "cannot serve" not in text
    assert 'from_pretrained("mine", trust_remote_code=True)' in text and "modeling_tracenas.py" in text
    assert "llama.cpp" not in text


def test_removed_attention_needs_the_plugin_or_a_stub() -> None:
    text = serving_section("mine", config(layers=REMOVED))
    assert "vllm serve mine\n" in text and "vllm serve mine --trust-remote-code" not in text
    assert "block 1 has no attention" in text and "--stub-removed-attention" in text
    other = serving_section("mine", config("gemma2", REMOVED))
    assert "vllm serve" not in other and "cannot serve" in other and "plugin" not in other


def test_only_what_was_run_is_said() -> None:
    for family in FAMILIES:
        text = serving_section("mine", config(family))
        assert ("--trust-remote-code" in text) == (family in STOCK_VLLM_FAMILIES)
        assert ("vllm serve mine\n" in text) == (family in PLUGIN_FAMILIES)
    stock = serving_section("mine", {"model_type": "llama"})
    assert "trust_remote_code" not in stock and "```sh\nvllm serve mine\n```" in stock
    assert "vllm" not in serving_section("mine", {"model_type": "olmo2"})  # not seen to be served


def test_export_where_there_is_a_layout() -> None:
    text = serving_section("mine", config(), "deci")
    assert "tracenas export mine --format gguf --out mine.gguf" in text and "`deci`" in text and "zeros" not in text
    assert "filled up with zeros" in serving_section("mine", config(), "padded")


def test_the_layout_of_a_checkpoint(tmp_path: Path) -> None:
    found = {}
    for name in ("llama", "mixtral"):
        draft = cut(dense_model(name), SHAPES["no_attention_in_layer_0"], tmp_path / name).draft
        found[name] = gguf_layout(config_family(draft.config), json.loads((draft.path / "config.json").read_text()))
    assert found == {"llama": "deci", "mixtral": None}


def test_a_recovered_card_serves_under_its_own_name(tmp_path: Path) -> None:
    before = serving_section("pruned", config())
    (tmp_path / "README.md").write_text(f"# pruned\n\n{before}\n\n## How it was made\n\nSo.\n")
    text = with_section(tmp_path, "better", "## Recovery\n", serving_section("better", config()))
    assert "vllm serve better --trust" in text and "serve pruned" not in text and "So." in text
    assert text.index("## Serving") < text.index("## How it was made") < text.index("## Recovery")
    assert text.count("## Serving") == 1
    assert with_serving("# no section\n", before) == "# no section\n"


# --- what vLLM reads ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", STOCK_VLLM_FAMILIES)
def test_the_configuration_leads_vllm_to_the_shipped_code(family: str, tmp_path: Path) -> None:
    """An architecture's name that nobody knows, AutoModel in auto_map, a backbone that takes vLLM's attention."""
    draft = cut(dense_model(family), SHAPES["last_block_skipped"], tmp_path / "pruned").draft
    found = json.loads((draft.path / "config.json").read_text())
    (architecture,) = found["architectures"]
    assert getattr(transformers, architecture, None) is None
    code = (draft.path / CODE_FILE).read_text()
    for auto in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
        module, _, name = found["auto_map"][auto].partition(".")
        assert f"{module}.py" == CODE_FILE and name in code.splitlines()[-1]
    assert list(found["per_layer_config"]) == [str(i) for i in range(found["num_hidden_layers"])]
    assert found["head_dim"] and found["allow_global_per_layer_attribute_access"]
    for kind in build(family)[1:]:
        assert kind.is_backend_compatible() and kind._can_set_attn_implementation()
        assert kind._supports_attention_backend


@pytest.mark.parametrize("family", FAMILIES.names())
def test_a_configuration_is_unpickled_where_its_class_was_not_built(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM sends it to a new process of its own."""
    module = encoder_decoder if family == "t5" else decoder_only
    for kind in build(family):
        sent = pickle.dumps(kind(num_hidden_layers=2) if kind is build(family)[0] else kind)
        monkeypatch.delitem(vars(module), kind.__name__)
        again = pickle.loads(sent)
        assert (again if isinstance(again, type) else type(again)) is kind
    with pytest.raises(AttributeError, match="TraceNASNothing"):
        _ = module.TraceNASNothing


# --- the plugin, without vLLM ---------------------------------------------------------------------


class Registry(ModuleType):
    """Stands for `vllm`: remembers what was registered."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.ModelRegistry = self
        self.models: dict[str, str] = {}

    def get_supported_archs(self) -> set[str]:
        return set(self.models)

    def register_model(self, name: str, model: str) -> None:
        assert name not in self.models
        self.models[name] = model


def test_the_plugin_is_declared_and_registers_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = settings["project"]["entry-points"]["vllm.general_plugins"]
    assert declared == {"tracenas": "tracenas.exporters.vllm_plugin:register"}
    from tracenas.exporters import vllm_plugin

    assert "vllm" not in sys.modules
    vllm = Registry()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    vllm_plugin.register()
    vllm_plugin.register()  # vLLM does so in every process
    names = {class_names(family)[2] for family in PLUGIN_FAMILIES}
    assert vllm.models == dict.fromkeys(names, vllm_plugin.MODEL)


def test_an_old_transformers_costs_only_our_models(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tracenas.exporters import vllm_plugin
    from tracenas.models import shipped

    vllm = Registry()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.delattr(shipped, "heterogeneous", raising=False)
    monkeypatch.setitem(sys.modules, "tracenas.models.shipped.heterogeneous", None)
    vllm_plugin.register()
    assert not vllm.models and "not registered" in caplog.text


def test_the_plugins_model_knows_the_registered_families() -> None:
    """Read as text: importing it needs vLLM."""
    from tracenas.exporters import vllm_plugin

    module, _, name = vllm_plugin.MODEL.partition(":")
    tree = ast.parse((Path(vllm_plugin.__file__).parent / f"{module.rpartition('.')[2]}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    table = next(n for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "_BLOCKS")
    assert isinstance(table.value, ast.Dict)
    assert tuple(ast.literal_eval(key) for key in table.value.keys if key) == PLUGIN_FAMILIES


def test_the_installed_entry_point_if_the_environment_is_up_to_date() -> None:
    points = [point for point in entry_points(group="vllm.general_plugins") if point.name == "tracenas"]
    if not points:
        pytest.skip("installed before the plugin was there")
    assert callable(points[0].load())
