"""Small parts that ipywidgets lacks: a slider that screen readers can name, a text that they read
out when it changes, one that folds, and arrow keys in lists and grids."""

from typing import Any

import anywidget
import traitlets

STEP = 0.05
"""How far a slider moves."""


class Slider(anywidget.AnyWidget):
    """A slider with a name that screen readers say, moved by mouse or arrow keys. Of ipywidgets'
    own, handles have none."""

    _esm = """
    function render({ model, el }) {
      const input = document.createElement("input");
      input.type = "range";
      let settled;  // while it is being moved, earlier answers must not move it back
      const show = () => {
        for (const name of ["min", "max", "step"]) input[name] = model.get(name);
        if (!settled) input.value = model.get("value");
        input.disabled = model.get("disabled");
        input.setAttribute("aria-label", model.get("label"));
        input.style.width = "100%";
      };
      input.addEventListener("input", () => {
        model.set("moved", Number(input.value));
        model.save_changes();
        clearTimeout(settled);
        settled = setTimeout(() => { settled = undefined; show(); }, 500);
      });
      model.on("change", show);
      show();
      el.appendChild(input);
    }
    export default { render };
    """
    label = traitlets.Unicode().tag(sync=True)
    min = traitlets.Float(0.0).tag(sync=True)
    max = traitlets.Float(1.0).tag(sync=True)
    step = traitlets.Float(STEP).tag(sync=True)
    value = traitlets.Float(0.0).tag(sync=True)
    moved = traitlets.Float(0.0).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)


def slider(number: Any, low: float, high: float, width: str, label: str) -> Slider:
    """A slider that moves with a number box, which can also be typed into.

    The browser writes `moved` and Python `value`, so that they never answer each other.
    """
    made = Slider(value=min(max(number.value, low), high), min=low, max=high, label=label)
    made.layout.width, made.moved = width, made.value

    def moved(change) -> None:
        if change["new"] != made.value:  # not what was typed
            number.value = round(change["new"], 2)

    def typed(change) -> None:
        made.value = min(max(change["new"], low), high)
        made.moved = made.value  # so that moving back to where it was is a move

    made.observe(moved, "moved")
    number.observe(typed, "value")
    return made


class Spoken(anywidget.AnyWidget):
    """A text, in HTML, that screen readers read out whenever it changes."""

    _esm = """
    function render({ model, el }) {
      el.setAttribute("role", "status");  // polite: what is being said is finished first
      const show = () => { el.innerHTML = model.get("value"); };
      model.on("change:value", show);
      show();
    }
    export default { render };
    """
    value = traitlets.Unicode().tag(sync=True)

    def __init__(self, value: str = ""):
        super().__init__(value=value)


class Folded(anywidget.AnyWidget):
    """A text, in HTML, under a title that opens it and that it stays open under when it changes."""

    _esm = """
    function render({ model, el }) {
      const details = document.createElement("details");
      const title = document.createElement("summary"), inside = document.createElement("div");
      title.innerText = model.get("title");
      const show = () => { inside.innerHTML = model.get("value"); };
      model.on("change:value", show);
      show();
      details.append(title, inside);
      el.appendChild(details);
    }
    export default { render };
    """
    title = traitlets.Unicode().tag(sync=True)
    value = traitlets.Unicode().tag(sync=True)

    def __init__(self, title: str):
        super().__init__(title=title)


class Arrows(anywidget.AnyWidget):
    """Arrow keys for what is inside `group`: its `items` (both are CSS selectors) are one stop of
    the Tab key, and the arrow keys, Home and End move among them by where they stand. The
    notebook's own shortcuts do not apply inside the group.

    https://www.w3.org/WAI/ARIA/apg/practices/keyboard-interface/ ("roving tabindex")
    """

    _esm = """
    const WAYS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const middle = (one) => {
      const at = one.getBoundingClientRect();
      return [at.x + at.width / 2, at.y + at.height / 2];
    };
    function next(all, from, key) {
      if (key === "Home") return all[0];
      if (key === "End") return all[all.length - 1];
      if (!WAYS[key]) return undefined;
      const [dx, dy] = WAYS[key], [x, y] = middle(from);
      let best, least = Infinity;
      for (const one of all) {
        const [u, v] = middle(one);
        const along = (u - x) * dx + (v - y) * dy, across = Math.abs((u - x) * dy + (v - y) * dx);
        if (along > 2 && along + 3 * across < least) [best, least] = [one, along + 3 * across];
      }
      return best;
    }
    function render({ model, el }) {
      el.style.display = "none";
      const items = model.get("items");
      let group, watcher;
      const listed = () => [...group.querySelectorAll(items)].filter((one) => one.offsetParent);
      const stop = (one) => { for (const it of listed()) it.tabIndex = it === one ? 0 : -1; };
      const tidy = () => {
        for (const one of group.querySelectorAll("input, select, button, summary"))
          one.setAttribute("data-lm-suppress-shortcuts", "true");  // else they are asked first
        const all = listed();
        stop(all.find((it) => it === document.activeElement) ??
             all.find((it) => it.tabIndex === 0) ?? all[0]);
      };
      const pressed = (event) => {
        if (!event.target.matches(items)) return;
        const one = next(listed(), event.target, event.key);
        if (!one) return;
        event.preventDefault();
        stop(one);
        one.focus();
      };
      const focused = (event) => { if (event.target.matches(items)) stop(event.target); };
      const begin = () => {
        group = el.closest(model.get("group"));
        if (!group) return (watcher = requestAnimationFrame(begin));
        group.addEventListener("keydown", pressed);
        group.addEventListener("focusin", focused);
        watcher = new MutationObserver(tidy);
        watcher.observe(group, { childList: true, subtree: true });
        tidy();
      };
      begin();
      return () => {
        if (!group) return cancelAnimationFrame(watcher);
        watcher.disconnect();
        group.removeEventListener("keydown", pressed);
        group.removeEventListener("focusin", focused);
      };
    }
    export default { render };
    """
    group = traitlets.Unicode().tag(sync=True)
    items = traitlets.Unicode().tag(sync=True)

    def __init__(self, group: str, items: str):
        super().__init__(group=group, items=items)
