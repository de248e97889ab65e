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


def test_every_style_has_a_picture(server):
    folder = server.context.settings.presets_path / "styles"
    folder.mkdir(parents=True, exist_ok=True)
    style = {"name": "half/and half?", "prompt": "noir {prompt}"}
    (folder / "odd.json").write_text(json.dumps([style]))
    listed = server.client.get("/api/styles").json()["styles"]
    listed = next(entry for entry in listed if entry["name"] == style["name"])
    answer = server.client.get(listed["picture"])
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "immutable" in answer.headers["cache-control"]
    assert answer.text.startswith("<svg")
    for name in ("nowhere", "..%2F..%2Feasel.db", "x" * 300):
        assert server.client.get(f"/api/styles/{name}/picture").status_code in (400, 404, 422)


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


def test_a_lora_for_another_family_is_told_before_anything_runs(server):
    loras = server.context.settings.models_path / "loras"
    checkpoints = server.context.settings.models_path / "checkpoints"

    def write(path, header):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(header).encode()
        path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(8))

    key = "lora_unet_x_attn2_to_k.lora_down.weight"
    write(loras / "old.safetensors", {key: {"shape": [4, 768]}})
    write(
        checkpoints / "xl.safetensors",
        {
            "conditioner.embedders.1.model.x": {"shape": [1]},
            "model.diffusion_model.attn2.to_k.weight": {"shape": [320, 2048]},
        },
    )
    said = "old.safetensors is made for SD 1.x, and xl.safetensors is SDXL"
    wish = {"checkpoint": "xl.safetensors", "prompt": "a <lora:old:1>"}
    (told,) = server.client.post("/api/inspect", json=wish).json()["misfits"]
    assert told.startswith(said)
    wish = {"checkpoint": "xl.safetensors", "loras": [{"name": "old", "enabled": False}]}
    assert server.client.post("/api/inspect", json=wish).json()["misfits"] == []
    address = "/api/loras/old.safetensors?checkpoint="
    assert server.client.get(f"{address}xl.safetensors").json()["misfit"].startswith(said)
    assert server.client.get(f"{address}gone.safetensors").json()["misfit"] == ""
    (checkpoints / "xl.safetensors").unlink()


def test_a_request_is_looked_at_without_queueing_it(server):
    loras = server.context.settings.models_path / "loras"
    embeddings = server.context.settings.models_path / "embeddings"
    for folder in (loras, embeddings):
        folder.mkdir(parents=True, exist_ok=True)
    (loras / "brush.safetensors").write_bytes(b"")
    header = json.dumps({"emb_params": {"shape": [5, 768]}}).encode()
    (embeddings / "Haze.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    before = server.context.store.queue_length()
    wish = {
        "prompt": "[[red, green]] hills <lora:brush:0.5> embedding:haze embedding:no",
        "image_count": 2,
        "seed": 2**60,
    }
    seen = server.client.post("/api/inspect?picture=1", json=wish).json()
    assert [line["text"][:5] for line in seen["prompts"]] == ["red h", "green"]
    assert seen["prompts"][1]["seed"] == 2**60 + 1
    assert seen["picture"]["index"] == 1
    assert seen["picture"]["loras"][0]["file"] == "brush.safetensors"
    assert (seen["embeddings"], seen["missing_embeddings"]) == (["haze"], ["no"])
    assert seen["picture"]["positive"][0][0]["tokens"] == 2 + 5 + 1
    assert server.context.store.queue_length() == before


def test_what_is_wrong_with_a_request_is_the_answer(server):
    for body, said in [
        (json.dumps({"prompt": "x" * 8_193}), "8,193 characters"),
        (json.dumps({"prompt": "[[" + "a," * 4_000 + "]]" + "[[a,b,c]]"}), "10,000 combinations"),
        (json.dumps({"steps": -1}), "at least 1"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "JSON"),
    ]:
        answer = server.client.post("/api/inspect", content=body)
        assert answer.status_code == 200
        assert said in answer.json()["problem"]["message"]
    assert server.client.post("/api/inspect?picture=50", json={}).status_code in (400, 422)
