// What happens in the browser alone: heat maps faded and switched, zoom and window, coverage switched, tables sorted and
// filtered, files pasted.
// Gradio changes the HTML of a view in place with each answer: elements may stay, with a state that is not the answer's.
// So events are caught at the document, each drawing carries a new data-drawing, and when that has changed the state is
// set from the answer or from what the visitor chose before (opacity, coverage, order of the table).

(() => {
  const chosen = { opacity: null, coverage: null, column: null, descending: false, filter: "" };

  // --- heat maps ---

  const fade = (percent, byVisitor = true) => {
    if (byVisitor) chosen.opacity = percent;
    document.documentElement.style.setProperty("--heat-opacity", percent / 100);
    document.querySelectorAll(".viewer output").forEach((output) => { output.textContent = percent; });
  };
  const showHeat = (radio) => {
    const viewer = radio.closest(".viewer");
    viewer.style.setProperty("--heat", `var(--heat-${radio.value})`);
    viewer.querySelectorAll(".map-note").forEach((note) => { note.hidden = note.dataset.class !== radio.value; });
  };
  // held down, M or the picture itself takes the map away, so that the slice below can be compared
  const typing = ({ target }) => target.closest?.("input:not([type=range]):not([type=radio]), textarea, select");
  const hideMap = (hidden) => document.documentElement.classList.toggle("map-hidden", hidden);
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "m" && !event.ctrlKey && !event.metaKey && !typing(event)) hideMap(true);
  });
  document.addEventListener("keyup", (event) => { if (event.key.toLowerCase() === "m") hideMap(false); });
  window.addEventListener("blur", () => hideMap(false));

  // --- display: zoom, window and level; on the screen alone ---

  const display = { zoom: 1, x: 0, y: 0, window: 100, level: 50, invert: false };
  const draw = () => {
    const most = (display.zoom - 1) / 2; // the picture's edge never comes inside the frame
    display.x = Math.min(most, Math.max(-most, display.x));
    display.y = Math.min(most, Math.max(-most, display.y));
    const root = document.documentElement.style;
    root.setProperty("--zoom", display.zoom);
    root.setProperty("--pan-x", `${100 * display.x}%`);
    root.setProperty("--pan-y", `${100 * display.y}%`);
    document.documentElement.classList.toggle("zoomed", display.zoom > 1);
    let slope = 100 / display.window;
    let intercept = 0.5 - slope * display.level / 100;
    if (display.invert) [slope, intercept] = [-slope, 1 - intercept];
    document.querySelectorAll("#grey-window feComponentTransfer > *").forEach((part) => {
      part.setAttribute("slope", slope);
      part.setAttribute("intercept", intercept);
    });
    document.querySelectorAll(".tools input").forEach((input) => { input.value = display[input.name]; });
    document.querySelector("[data-tool=invert]")?.setAttribute("aria-pressed", display.invert);
  };
  const zoom = (factor) => { display.zoom = Math.min(8, Math.max(1, display.zoom * factor)); draw(); };
  const resetDisplay = () => {
    Object.assign(display, { zoom: 1, x: 0, y: 0, window: 100, level: 50, invert: false });
    draw();
  };
  const tools = {
    in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset: resetDisplay, print: () => window.print(),
    invert: () => { display.invert = !display.invert; draw(); },
  };
  document.addEventListener("click", ({ target }) => tools[target.closest("[data-tool]")?.dataset.tool]?.());
  document.addEventListener("wheel", (event) => {
    if (!event.target.closest(".stack") || !(event.ctrlKey || display.zoom > 1)) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }, { passive: false });
  document.addEventListener("dblclick", ({ target }) => {
    if (target.closest(".stack")) display.zoom > 1 ? resetDisplay() : zoom(2);
  });
  let dragged = null;
  document.addEventListener("pointerdown", ({ target, pointerId }) => {
    dragged = display.zoom > 1 && target.closest(".stack");
    if (dragged) dragged.setPointerCapture(pointerId);
    else if (target.closest(".mapped .stack")) hideMap(true);
  });
  document.addEventListener("pointermove", ({ movementX, movementY }) => {
    if (!dragged) return;
    display.x += movementX / dragged.clientWidth;
    display.y += movementY / dragged.clientHeight;
    draw();
  });
  const letGo = () => { dragged = null; hideMap(false); };
  document.addEventListener("pointerup", letGo);
  document.addEventListener("pointercancel", letGo);

  // --- coverage of the prediction set ---

  const showCoverage = (coverage, byVisitor = true) => {
    if (byVisitor) chosen.coverage = coverage;
    document.querySelectorAll("#answer [data-coverage]").forEach((part) => {
      part.hidden = part.dataset.coverage !== coverage;
    });
  };

  document.addEventListener("input", ({ target }) => {
    if (target.name === "heat-opacity") fade(target.value);
    else if (target.name === "heat-class") showHeat(target);
    else if (target.name === "coverage") showCoverage(target.value);
    else if (target.name === "window" || target.name === "level") { display[target.name] = Number(target.value); draw(); }
    else if (target.name === "decision-filter") { chosen.filter = target.value; filter(); }
  });

  // --- table ---

  const cellValue = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent;
  };
  const sort = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.dataset.sort) return;
      const order = chosen.descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", column === chosen.column ? order : "none");
    });
    if (chosen.column === null) return;
    const numeric = heads[chosen.column].dataset.sort === "number";
    const compare = (one, other) => {
      const [a, b] = [cellValue(one, chosen.column), cellValue(other, chosen.column)];
      return numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
    };
    const rows = [...table.tBodies[0].rows].sort(compare);
    if (chosen.descending) rows.reverse();
    table.tBodies[0].append(...rows);
  };
  const filter = () => document.querySelectorAll("#batch-table tbody tr").forEach((row) => {
    row.hidden = Boolean(chosen.filter) && row.dataset.kind !== chosen.filter;
  });
  const open = (button, number) => {
    window.chosenNumber = number; // the hidden button's event reads it
    document.querySelector(button)?.click();
  };
  document.addEventListener("click", ({ target }) => {
    const row = target.closest("#batch-table tbody tr");
    if (row?.querySelector(".open")) open("#open-row", Number(row.dataset.row));
    if (target.closest("[data-report]")) document.querySelector("#make-report")?.click();
    const entry = target.closest("[data-entry]");
    if (entry) open("#open-entry", Number(entry.dataset.entry));
  });
  document.addEventListener("click", ({ target }) => {
    const head = target.closest("#batch-table th[data-sort]");
    if (!head) return;
    chosen.descending = chosen.column === head.cellIndex && !chosen.descending;
    chosen.column = head.cellIndex;
    sort(head.closest("table"));
    head.closest(".scroll").scrollTop = 0;
  });

  // --- several files, or a zip: they belong to Many files, wherever they are dropped ---

  const take = (input, files) => {
    const transfer = new DataTransfer();
    files.forEach((file) => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const several = (files) => files.length > 1 || files.some((file) => /\.zip$/i.test(file.name));
  const takeMany = (files) => {
    const tab = [...document.querySelectorAll("#views button[role=tab]")].find((t) => t.textContent.trim() === "Many files");
    tab?.click();
    // the view may be drawn only now
    const waiting = setInterval(() => {
      const input = document.querySelector("#batch-input input[type=file]");
      if (!input) return;
      clearInterval(waiting);
      take(input, files);
    }, 50);
  };
  document.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!event.target.closest?.("#slice-input") || !several(files)) return;
    event.preventDefault();
    event.stopPropagation();
    takeMany(files);
  }, true);

  // --- paste: Gradio's own button asks for a permission and takes pictures only; this takes any file from Ctrl+V ---

  document.addEventListener("paste", (event) => {
    const files = event.clipboardData ? [...event.clipboardData.files] : [];
    const views = ["#slice-input", "#batch-input"].map((name) => document.querySelector(name));
    const view = views.find((element) => element && element.offsetParent !== null);
    const input = view && view.querySelector("input[type=file]");
    if (!files.length || !input) return;
    event.preventDefault();
    if (!input.multiple && several(files)) takeMany(files);
    else take(input, files);
  });

  // --- from the moment a file is chosen until its own answer stands there, no other file's is seen ---

  const stale = (is) => document.documentElement.classList.toggle("stale", is);
  document.addEventListener("change", ({ target }) => { if (target.closest("#slice-input")) stale(true); }, true);
  document.addEventListener("drop", ({ target, dataTransfer }) => {
    const files = [...(dataTransfer?.files ?? [])];
    if (files.length && !several(files) && target.closest?.("#slice-input")) stale(true);
  }, true);

  // --- after each answer ---

  const drawings = {};
  const drawn = (selector, settleIt) => {
    const element = document.querySelector(selector);
    if (!element || element.dataset.drawing === drawings[selector]) return;
    drawings[selector] = element.dataset.drawing;
    settleIt(element);
  };
  const check = (element, name, value) => {
    const radio = element.querySelector(`input[name=${name}][value="${value}"]`);
    if (radio) radio.checked = true;
    return Boolean(radio);
  };
  const settle = () => {
    document.querySelectorAll("#answer").forEach((answer) => answer.setAttribute("aria-live", "polite"));
    // Gradio gives a file input no name that a screen reader could say
    for (const [id, name] of [["slice-input", "MRI slice"], ["batch-input", "MRI slices or a zip of them"]]) {
      const input = document.querySelector(`#${id} input[type=file]`);
      if (input && !input.ariaLabel) input.ariaLabel = name;
    }
    // what scrolls sideways on a phone must be reached by keyboard
    document.querySelectorAll("#model-card :is(table, pre):not([tabindex])").forEach((part) => { part.tabIndex = 0; });
    drawn("#viewer .viewer", (viewer) => {
      draw();
      const slider = viewer.querySelector("input[name=heat-opacity]");
      if (!slider) return;
      slider.value = chosen.opacity ?? slider.defaultValue;
      fade(slider.value, false);
      check(viewer, "heat-class", viewer.dataset.target);
      viewer.querySelectorAll(".map-note").forEach((n) => { n.hidden = n.dataset.class !== viewer.dataset.target; });
    });
    drawn("#answer .panel", (panel) => {
      stale(false);
      const coverage = chosen.coverage ?? panel.dataset.first;
      if (check(panel, "coverage", coverage)) showCoverage(coverage, false);
    });
    drawn("#batch-table table", (table) => {
      const select = document.querySelector("[name=decision-filter]");
      select.value = [...select.options].some((o) => o.value === chosen.filter) ? chosen.filter : "";
      chosen.filter = select.value;
      sort(table);
      filter();
    });
  };
  const start = () => {
    new MutationObserver(settle).observe(document.body, {
      childList: true, subtree: true, attributes: true, attributeFilter: ["data-drawing"],
    });
    settle();
  };
  // Gradio may run this script while the page is read, or after
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
