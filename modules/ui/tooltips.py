"""What each control does, where no help under its name says it: `tip.<element id>`, by language."""

from collections.abc import Mapping

TOOLTIPS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "tip.prompt": "What the picture shows, in your words; a line break begins a part that is "
        "read on its own.",
        "tip.generate": "Paints what the settings and the prompt say; Ctrl+Enter does the same.",
        "tip.advanced-label": "Shows or hides the settings; they count either way.",
        "tip.try-example": "Puts an example into the prompt; nothing is painted yet.",
        "tip.look-again": "Looks for model files once more.",
        "tip.preset-undo": "Puts every control back to what it held before the preset.",
        "tip.preset-keep": "Deletes nothing.",
        "tip.preset-gone": "Deletes the preset's file; this cannot be undone.",
        "tip.preset-manage": "Save the settings of this moment under a name, and change those that "
        "you saved.",
        "tip.preset-name": "The name under which Save and Rename keep the preset.",
        "tip.preset-save": "Keeps the settings of this moment, without the prompt, under the name "
        "above.",
        "tip.preset-rename": "Gives the chosen preset of your own the name above.",
        "tip.preset-delete": "Deletes the chosen preset of your own, after asking once more.",
        "tip.preset-compare": "Says what of the settings is not as the chosen preset has it.",
        "tip.more-sizes": "Shows every size that the model was made for, or the usual ones alone.",
        "tip.seed-random": "Draws a new seed for every press of Generate; off keeps the one beside "
        "it.",
        "tip.style-search": "Shows the styles whose name or words have what you type.",
        "tip.clear-styles": "Takes out every chosen style; the prompt is painted as it stands.",
        "tip.lora-add": "Makes room for one more LoRA.",
        "tip.refresh": "Looks for models, VAEs, LoRAs and presets that were added since.",
        "tip.ip-add": "Makes room for one more image prompt.",
        "tip.freeu": "More contrast of forms, by four numbers; off unless you switch it on.",
        "tip.tab-settings": "Preset, performance, size, number of pictures and seed.",
        "tip.tab-styles": "Looks that the prompt is set into, and prompt expansion.",
        "tip.tab-models": "Which checkpoint, VAE and LoRAs paint.",
        "tip.tab-advanced": "Guidance, sampler, a size of your own, picture quality, refiner.",
    },
}
