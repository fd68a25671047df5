// What happens in the browser alone: heat maps faded and switched, coverage switched, tables sorted, files pasted.
// Gradio changes the HTML of a view in place with each answer: elements may stay, with a state that is not the answer's.
// So events are caught at the document, each drawing carries a new data-drawing, and when that has changed the state is
// set from the answer or from what the visitor chose before (opacity, coverage, order of the table).

(() => {
  const chosen = { opacity: null, coverage: null, column: null, descending: false };

  // --- heat maps ---

  const fade = (percent, byVisitor = true) => {
    if (byVisitor) chosen.opacity = percent;
    document.documentElement.style.setProperty("--heat-opacity", percent / 100);
    document.querySelectorAll(".viewer output").forEach((output) => { output.textContent = percent; });
  };
  const showHeat = (radio) => radio.closest(".viewer").style.setProperty("--heat", `var(--heat-${radio.value})`);

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
  document.addEventListener("click", ({ target }) => {
    const head = target.closest("#batch-table th[data-sort]");
    if (!head) return;
    chosen.descending = chosen.column === head.cellIndex && !chosen.descending;
    chosen.column = head.cellIndex;
    sort(head.closest("table"));
  });

  // --- paste: Gradio's own button asks for a permission and takes pictures only; this takes any file from Ctrl+V ---

  document.addEventListener("paste", (event) => {
    const files = event.clipboardData ? [...event.clipboardData.files] : [];
    const views = ["#slice-input", "#batch-input"].map((name) => document.querySelector(name));
    const view = views.find((element) => element && element.offsetParent !== null);
    const input = view && view.querySelector("input[type=file]");
    if (!files.length || !input) return;
    event.preventDefault();
    const transfer = new DataTransfer();
    (input.multiple ? files : files.slice(0, 1)).forEach((file) => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

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
    drawn("#viewer .viewer", (viewer) => {
      const slider = viewer.querySelector("input[name=heat-opacity]");
      if (!slider) return;
      slider.value = chosen.opacity ?? slider.defaultValue;
      fade(slider.value, false);
      check(viewer, "heat-class", viewer.dataset.target);
    });
    drawn("#answer .panel", (panel) => {
      const coverage = chosen.coverage ?? panel.dataset.first;
      if (check(panel, "coverage", coverage)) showCoverage(coverage, false);
    });
    drawn("#batch-table table", sort);
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
