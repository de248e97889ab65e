"""The rows for a processor with bf16 units: what they do without, and that both sides agree."""

from benchmarks import rows_network, run
from benchmarks.sizes import Options

NAMES = ["unet_bf16", "unet_bf16_small", "vae_decode_bf16", "text_to_image"]


def test_without_the_units_they_wait_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ldm_patched.modules.model_management.cpu_has_bf16", lambda: False)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    assert run.main(NAMES) == 0
    assert capsys.readouterr().out.count("-- needs a processor with AMX") == len(NAMES)


def test_a_quick_run_measures_without_them(monkeypatch):
    monkeypatch.setattr("ldm_patched.modules.model_management.cpu_has_bf16", lambda: False)
    row = rows_network.vae_decode_bf16(Options(quick=True, rounds=2))
    assert row.error is not None and row.error < 3e-2
