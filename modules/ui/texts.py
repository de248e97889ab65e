"""Every word of the page, by language. Adding a language is adding a table.

Labels and helps of fields come from TaskSpec, unless a table has `label.<field>` or
`help.<field>`. `{name}` in a text is filled in by whoever shows it. The script of the page gets
the whole table, so that both sides say the same.
"""

import json
from collections.abc import Mapping

from modules.spec.task_spec import TaskSpec
from modules.ui.image_texts import IMAGE_TEXTS
from modules.ui.tooltips import TOOLTIPS

DEFAULT_LANGUAGE = "en"

TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "title": "Easel",
        # the frame of the page
        "tab.settings": "Settings",
        "tab.styles": "Styles",
        "tab.models": "Models",
        "tab.advanced": "Advanced",
        "toggle.advanced": "Advanced",
        "toggle.sheet": "Settings",
        "sheet.close": "Close the settings",
        "theme.light": "Switch to the light theme",
        "theme.dark": "Switch to the dark theme",
        "log.out": "Log out",
        "log.out.name": "Log out {name}",
        "skip.to.prompt": "Go to the prompt",
        # the prompt
        "prompt.placeholder": "Describe the picture",
        "prompt.example": "a red house by a blue lake at night",
        "generate": "Generate",
        "generate.queue": "Add to queue",
        "stop": "Stop",
        "stop.help": "End this task; finished pictures are kept",
        "stopping": "stopping…",
        "skip": "Skip",
        "skip.help": "End this picture and go on with the next one",
        "skipping": "skipping…",
        # the stage
        "stage": "Picture",
        "idle.title": "What would you like to see?",
        "idle.text": "Describe it below and press Generate.",
        "idle.example": "Try an example",
        "nomodel.title": "One thing is missing: a model",
        "nomodel.text": "Put an SDXL checkpoint (a .safetensors file) into {folder}, "
        "then press Refresh.",
        "nomodel.known": "Known to work:",
        "nomodel.found": "Found {name}.",
        "nomodel.failed": "Nothing was painted: there is no model yet.",
        "nomodel.none": "There is still no checkpoint in {folder}.",
        "refresh": "Refresh",
        "queued": "Waiting in the queue",
        "queued.next": "Next in the queue",
        "queued.text": "It starts by itself when the pictures before it are finished.",
        "queued.position": "Number {position} in the queue",
        "loading": "Loading the model…",
        "starting": "Starting…",
        "progress": "Progress",
        "progress.image": "picture {image} of {count}",
        "progress.step": "step {step}/{steps}",
        "progress.left": "{time} left",
        "done.one": "1 picture in {time}",
        "done.many": "{count} pictures in {time}",
        "stopped.none": "Stopped before the first picture was finished.",
        "stopped.some": "Stopped; {count} of {total} pictures are kept.",
        "failed.title": "This did not work",
        "picture.alt": "{prompt}",
        "preview.alt": "Preview of: {prompt}",
        "picture.open": "Show it large",
        "picture.facts": "{width} × {height} · seed {seed}",
        "action.download": "Download",
        "action.copy": "Copy settings",
        "action.copied": "Settings copied",
        "action.seed": "Use seed",
        "action.seeded": "Seed {seed} is set",
        "action.image": "Use as image prompt",
        "viewer": "Large picture",
        "viewer.close": "Close",
        "viewer.previous": "Previous picture",
        "viewer.next": "Next picture",
        "strip": "Pictures",
        "strip.empty": "Your pictures will line up here.",
        "strip.live": "The picture that is forming",
        "strip.pending": "Picture {number} is still to come",
        "strip.item": "Picture: {prompt}",
        "strip.seed": "seed {seed}",
        # queue, errors, server
        "queue": "Waiting tasks",
        "queue.count": "queue {count}",
        "queue.remove": "Remove from the queue: {prompt}",
        "queue.more": "and {count} more",
        "untitled": "no prompt",
        "error.close": "Close this message",
        "offline": "Easel does not answer. Trying again; nothing that was accepted is lost.",
        "online": "Easel answers again.",
        "offline.generate": "Easel does not answer, so nothing was sent. "
        "Start it again, then press Generate.",
        "offline.action": "Easel did not answer. Look whether it was done before you try again.",
        "error.unknown": "Easel could not do this; the log has the details. Try again.",
        "error.noanswer": "Easel gave no answer, but the pictures may be on their way: look at the "
        "queue and the newest pictures before you try again.",
        "error.gone": "This task is not known any more. Press Generate to start a new one.",
        # settings
        "label.random_seed": "Random",
        "help.random_seed": "Draw a new seed for every task.",
        "label.aspect_ratio": "Size",
        "help.aspect_ratio": "Width × height of the picture in pixels; the model was made for "
        "these sizes.",
        "help.steps": "How many times the picture is refined; 20 to 40 is usual, more takes "
        "longer.",
        "help.image_count": "How many pictures one press of Generate paints, each with the next "
        "seed.",
        "help.seed": "The same seed and settings give the same picture again.",
        "help.negative_prompt": "What the picture should not show, such as blur, text, watermark.",
        "help.preset": "A named group of settings; choosing one sets the controls to it.",
        "negative.placeholder": "What to leave out",
        "size.more": "All {count} sizes",
        "size.fewer": "Fewer sizes",
        "format.png": "PNG",
        "format.jpeg": "JPEG",
        "format.webp": "WebP",
        "preset.manage": "Presets of your own",
        "preset.name": "Name of the preset",
        "preset.save": "Save",
        "preset.rename": "Rename",
        "preset.delete": "Delete",
        "preset.compare": "Compare",
        "preset.undo": "Undo",
        "preset.saved": "{title} is saved.",
        "preset.sure": "Delete {title} for good?",
        "preset.gone": "Delete it",
        "preset.keep": "Keep it",
        "preset.kept": "The preset stays.",
        "preset.deleted": "The preset is deleted.",
        "preset.same": "Everything is as the preset has it.",
        "preset.changes": "Changed: {changes}.",
        "preset.more": "{changes} and {count} more",
        "preset.arrived": "{files} has arrived.",
        "preset.offer": "{files} has arrived. The preset of this moment is made for the small "
        "model; choose {title} to paint with the new one.",
        "preset.undone": "Everything is as it was before.",
        "preset.nothing": "There is nothing to undo.",
        "performance.custom": "Custom",
        "performance.forced": "This mode decides what is greyed: {fields}. Choose Custom to set "
        "it yourself.",
        "performance.value": "· {value} in this mode",
        "performance.missing": "It needs a file in models/loras:",
        "performance.none": "There is no LoRA of this mode for the built-in model: choose another "
        "mode, or another checkpoint.",
        "quality.title": "Picture quality",
        "clip_skip.placeholder": "the checkpoint's own",
        "label.freeu_on": "FreeU",
        "help.freeu_on": "More contrast of forms: what is strong in the network grows, the slow "
        "part of what skips it shrinks.",
        "label.freeu_b1": "FreeU b1",
        "help.freeu_b1": "How much forms grow in the deepest layers; 1 is not at all, up to 1.3 "
        "is usual.",
        "label.freeu_b2": "FreeU b2",
        "help.freeu_b2": "The same in the layers above; up to 1.4 is usual.",
        "label.freeu_s1": "FreeU s1",
        "help.freeu_s1": "How much of the slow part is kept in the deepest layers; 1 is all of it.",
        "label.freeu_s2": "FreeU s2",
        "help.freeu_s2": "The same in the layers above; 1 is all of it.",
        "refiner.none": "none",
        "refiner.from": "from the share",
        "overwrite.placeholder": "from Performance",
        "make.title": "What this will make",
        "make.one": "1 picture",
        "make.many": "{count} pictures",
        "make.size": "{width} × {height}",
        "make.steps": "{steps} steps",
        "make.time": "about {time}",
        "make.memory": "{size} GB of memory",
        # the prompt inspector
        "inspect": "Inspect prompt",
        "inspect.help": "What will be painted, from which words, before anything runs",
        "inspect.title": "Prompt inspector",
        "inspect.close": "Close the inspector",
        "inspect.prompts": "Prompts",
        "inspect.count": "{count} to look at",
        "inspect.combinations": "{count} combinations",
        "inspect.picture": "Picture {number}",
        "inspect.beyond": "Combinations that more pictures would show",
        "inspect.positive": "Painted from",
        "inspect.negative": "Left out",
        "inspect.chunk": "chunk {number}: {tokens} of 75 tokens",
        "inspect.tokens": "{tokens} of 75 tokens",
        "inspect.empty": "no words",
        "inspect.styles": "Styles",
        "inspect.loras": "LoRAs",
        "inspect.lora": "{name} at {weight}",
        "inspect.expansion": "Added words",
        "inspect.embeddings": "Embeddings",
        "inspect.wildcards": "Word lists",
        "inspect.lora.missing": "The LoRA {name} is not in models/loras; nothing is painted "
        "until it is there or taken out.",
        "inspect.embedding.missing": "The embedding {name} is not in models/embeddings; nothing "
        "is painted until it is there or taken out.",
        "inspect.chance": "Some words are drawn by the seed, and the seed is drawn when you press "
        "Generate: these are an example.",
        "inspect.failed": "The prompt cannot be looked at now; it will be tried again when it "
        "changes.",
        # image prompts
        **IMAGE_TEXTS["en"],
        # styles
        "styles.search": "Search styles",
        "styles.none": "No style is chosen: the prompt is painted as it stands.",
        "styles.chosen": "Chosen styles, in their order",
        "styles.take.out": "Take out {title}",
        "styles.random": "Random style",
        "styles.random.help": "Draws one style for every picture; the seed decides which.",
        "styles.clear": "Clear",
        "styles.nothing": "No style has these words. Try fewer of them.",
        "styles.more": "{count} more; search to find them.",
        "styles.gone": "{title} is not there any more",
        "styles.failed": "The styles cannot be listed now; open this tab again.",
        # LoRAs
        "loras": "LoRAs",
        "loras.help": "Small files that teach the checkpoint a style or a subject; 0.5 to 1 is a "
        "usual weight. Files in models/loras.",
        "loras.choice": "LoRA {number}",
        "loras.weight": "Weight of LoRA {number}",
        "loras.on": "Use LoRA {number}",
        "loras.weight.help": "How strongly it counts; 1 as it was made, 0 not at all, below 0 "
        "the opposite.",
        "loras.on.help": "Off keeps the LoRA in the list unused.",
        "loras.nothing": "None",
        "loras.add": "Add another",
        "loras.missing": "{name} is not in models/loras. Put the file there and press Refresh, or "
        "choose another one.",
        "loras.unreadable": "This file cannot be read; copy it there again.",
        "loras.family": "made for {family}",
        "loras.triggers": "Trigger words:",
        "loras.trigger": "Add to the prompt: {words}",
        "loras.failed": "The LoRAs cannot be listed now; press Refresh.",
        # models
        "help.checkpoint": "The model file that paints; it decides style and subject most.",
        "help.vae": "What turns the model's latents into a picture; files in models/vae.",
        "vae.own": "The checkpoint's own",
        "models.none": "No checkpoint found",
        "models.where": "Checkpoints are .safetensors files in {folder}; after adding one, "
        "press Refresh.",
        "models.known": "Known downloads",
        "models.into": "save into {folder}",
        # model files on their way
        "download": "Download",
        "download.size": "Download ({size})",
        "download.of": "Download {file}",
        "download.stop": "Stop the download of {file}; what has arrived is kept",
        "download.waiting": "waiting for its turn",
        "download.connecting": "connecting…",
        "download.pausing": "the connection broke; trying again…",
        "download.checking": "checking…",
        "download.part": "{done} of {total}",
        "download.rate": "{rate}/s",
        "download.kept": "{size} are kept; Download goes on from there",
        "download.done": "is here now",
        "download.arrived": "{file} has arrived.",
        "download.share": "download {percent} %",
        "download.amount": "download {size}",
        "download.owner": "The owner of this Easel can download it.",
        # advanced
        "label.width": "Width",
        "label.height": "Height",
        "help.cfg_scale": "How strictly the picture follows the prompt; 3 to 8 is usual, 1 is "
        "fastest.",
        "help.sampler": "The method that removes the noise; dpmpp_2m_sde suits most pictures.",
        "help.scheduler": "How the noise falls from step to step; karras suits most pictures.",
        "help.width": "Width in pixels, a multiple of 8; leave both empty to use Size.",
        "help.height": "Height in pixels, a multiple of 8; leave both empty to use Size.",
        "override.placeholder": "from Size",
        # units
        "seconds": "{count} s",
        "minutes": "{minutes} min {seconds} s",
        "hours": "{hours} h {minutes} min",
    },
}


class Texts:
    """One language's table; a key that it lacks is taken from English."""

    def __init__(self, language: str = DEFAULT_LANGUAGE) -> None:
        self.language = language if language in TEXTS else DEFAULT_LANGUAGE
        tables = (TOOLTIPS, TEXTS)
        languages = (DEFAULT_LANGUAGE, self.language)
        self._table = {k: v for one in languages for t in tables for k, v in t.get(one, {}).items()}

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key` with `values` filled in. KeyError for a key that nobody wrote."""
        return self._table[key].format(**values) if values else self._table[key]

    def label(self, field: str) -> str:
        """What a control for TaskSpec field `field` is called."""
        info = TaskSpec.model_fields.get(field)
        return self._table.get(f"label.{field}") or (info.title if info else None) or field

    def help(self, field: str) -> str | None:
        """One sentence on what `field` does to the picture, or None."""
        info = TaskSpec.model_fields.get(field)
        return self._table.get(f"help.{field}") or (info.description if info else None)

    def to_json(self) -> str:
        """The whole table for the page's script."""
        return json.dumps(self._table, ensure_ascii=False)
