"""How the page looks: theme, style sheet and script, as Gradio takes them at launch.

The style sheet is page.css (print.css on paper), the script page.js, those of the examination lie beside them; they
fetch nothing.
"""

from pathlib import Path

import gradio as gr

_HERE = Path(__file__).parent

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.cyan,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    # Bundled with Gradio, so nothing is fetched. Its semi-bold file (6.31) lacks most letters; 400 and 700 are whole.
    font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Consolas", "monospace"),
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_800",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_300",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_900",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_hover_dark="*neutral_800",
    button_secondary_border_color="*neutral_200",
    button_secondary_border_color_dark="*neutral_700",
    button_border_width="1px",
    color_accent="*primary_700",
)


def _read(*names: str) -> str:
    return "".join((_HERE / name).read_text(encoding="utf-8") for name in names)


CSS = _read("page.css", "examination.css")

# One rule is here because Gradio confines CSS to its content: a dot follows the one link that the footer has.
HEAD = (
    f'<style>footer .divider {{ display: none; }}</style>\n<style media="print">{_read("print.css")}</style>\n'
    f"<script>\n{_read('page.js', 'examination.js')}</script>\n"
)
