"""What the page asks while a prompt is being written, over real HTTP."""

import json


def test_styles_are_listed_with_the_users_own_first_and_faults_told(server):
    settings = server.context.settings
    own, shipped = settings.root / "styles", settings.presets_path / "styles"
    for folder in (own, shipped):
        folder.mkdir(parents=True, exist_ok=True)
    haze = {"name": "haze", "prompt": "haze over {prompt}", "negative_prompt": "noise"}
    (shipped / "three-d.json").write_text(json.dumps([haze, {"name": "ink", "prompt": "ink"}]))
    (own / "styles.csv").write_text('name,prompt,negative_prompt\nhaze,"my haze",\n')
    (own / "fooocus.json").write_text(json.dumps([{"name": "Sai-Line", "prompt": "{prompt}, x"}]))
    (own / "broken.json").write_text("{")
    answer = server.client.get("/api/styles").json()
    assert [(style["name"], style["group"]) for style in answer["styles"]] == [
        ("Sai-Line", "Fooocus"),
        ("haze", "Styles"),
        ("ink", "Three D"),
    ]
    assert answer["styles"][1]["prompt"] == "{prompt}, my haze"
    assert len(answer["notices"]) == 1
    assert "'broken.json' is not valid JSON" in answer["notices"][0]


def test_loras_are_listed_and_tell_of_themselves(server):
    folder = server.context.settings.models_path / "loras" / "sub"
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"__metadata__": {"modelspec.trigger_phrase": "inkwash"}}).encode()
    data = len(header).to_bytes(8, "little") + header
    (folder / "ink wash.safetensors").write_bytes(data)
    listed = server.client.get("/api/loras").json()["loras"]
    assert listed == [{"name": "sub/ink wash.safetensors", "size": len(data)}]
    said = server.client.get("/api/loras/sub/ink wash.safetensors").json()
    assert said["triggers"] == ["inkwash"]
    assert said["readable"] is True
    for name in ("gone.safetensors", "../checkpoints/a.safetensors", "x" * 300):
        answer = server.client.get(f"/api/loras/{name}")
        assert answer.status_code in (400, 404, 422)
        assert str(folder) not in answer.text
