// The examination: three planes drawn from the voxels that came with the answer, the profile's slider, folders dropped.
// Voxels are (x, y, z) to the patient's right, anterior and superior; every plane is drawn with both axes running down, so
// that the patient's right, front and head are left and top, as radiologists look at pictures.

(() => {
  const DISPLAY = { window: 100, level: 50, opacity: 60, invert: false };
  let volume = null; // of the answer that is on the page; null while there is none
  const display = { ...DISPLAY };

  const unpack = async (text) => {
    const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1; i < voxels.length; i += 1) voxels[i] += voxels[i - 1]; // they travel as differences, modulo 256
    return voxels;
  };

  const greys = () => {
    const slope = 100 / display.window;
    const table = new Uint8ClampedArray(256);
    for (let i = 0; i < 256; i += 1) {
      const grey = 127.5 + slope * (i - 2.55 * display.level);
      table[i] = display.invert ? 255 - grey : grey;
    }
    return table;
  };

  const drawPlane = (plane, table) => {
    const { shape, strides, at, voxels, heat, palette } = volume;
    const axis = Number(plane.dataset.axis);
    const [across, down] = [0, 1, 2].filter((k) => k !== axis);
    const [width, height] = [shape[across], shape[down]];
    const canvas = plane.querySelector("canvas");
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const pixels = picture.data;
    for (let row = 0, p = 0; row < height; row += 1) {
      let v = at[axis] * strides[axis] + (height - 1 - row) * strides[down] + (width - 1) * strides[across];
      for (let column = 0; column < width; column += 1, p += 4, v -= strides[across]) {
        const grey = table[voxels[v]];
        const share = heat ? heat[v] * display.opacity / 25500 : 0;
        for (let k = 0; k < 3; k += 1) {
          pixels[p + k] = share ? grey + share * (palette[3 * heat[v] + k] - grey) : grey;
        }
        pixels[p + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
    plane.style.setProperty("--x", `${100 * (width - 0.5 - at[across]) / width}%`);
    plane.style.setProperty("--y", `${100 * (height - 0.5 - at[down]) / height}%`);
    const slider = plane.querySelector("input");
    slider.value = axis === volume.axis ? index() : at[axis];
    slider.setAttribute("aria-valuetext", axis === volume.axis ? words() : `${slider.value} of ${slider.max}`);
  };

  // the input's own number of the slice that is shown
  const turned = (k) => (volume.flipped ? volume.shape[volume.axis] - 1 - k : k);
  const index = () => turned(volume.at[volume.axis]);
  const words = () => volume.words[index()] ?? `Slice ${index()}: no head`;

  const draw = () => {
    if (!volume) return;
    const { section } = volume;
    const table = greys();
    section.querySelectorAll(".plane").forEach((plane) => drawPlane(plane, table));
    const strip = section.querySelector(".strip");
    strip.style.setProperty("--at", index());
    const slider = strip.querySelector("input");
    slider.value = index();
    slider.setAttribute("aria-valuetext", words());
    section.querySelector(".profile output").textContent = words();
    section.querySelectorAll(".volume-tools input").forEach((input) => {
      input.value = display[input.name.replace("volume-", "")];
    });
    section.querySelector("[data-volume-tool=invert]").setAttribute("aria-pressed", display.invert);
  };

  let asked = 0;
  const redraw = () => { // once a frame, however fast a slider moves
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(draw);
  };
  const go = (axis, place) => {
    volume.at[axis] = Math.min(volume.shape[axis] - 1, Math.max(0, Math.round(place)));
    redraw();
  };

  const numbers = (text) => text.split(",").map(Number);
  const load = async (section) => {
    volume = null;
    Object.assign(display, DISPLAY);
    const shape = numbers(section.dataset.shape);
    const [voxels, heat] = await Promise.all(["voxels", "heat"].map((name) => {
      const text = section.querySelector(`data.${name}`).value;
      return text ? unpack(text) : null;
    }));
    if (!section.isConnected || section.dataset.drawing !== drawn) return; // another answer came meanwhile
    volume = {
      section, shape, voxels, heat,
      strides: [shape[1] * shape[2], shape[2], 1],
      axis: Number(section.dataset.axis),
      flipped: section.dataset.flipped === "1",
      at: numbers(section.dataset.focus),
      words: JSON.parse(section.dataset.words),
      palette: Uint8Array.from(section.dataset.palette.match(/../g), (pair) => parseInt(pair, 16)),
    };
    draw();
    section.dataset.ready = "";
  };

  // --- what a visitor does ---

  document.addEventListener("input", ({ target }) => {
    if (!volume || !volume.section.contains(target)) return;
    const value = Number(target.value);
    if (target.name === "strip") go(volume.axis, turned(value));
    else if (target.name === "plane") {
      const axis = Number(target.closest(".plane").dataset.axis);
      go(axis, axis === volume.axis ? turned(value) : value);
    } else { display[target.name.replace("volume-", "")] = value; redraw(); }
  });
  document.addEventListener("click", ({ target }) => {
    const tool = target.closest("[data-volume-tool]")?.dataset.volumeTool;
    if (tool === "invert") display.invert = !display.invert;
    if (tool === "reset") Object.assign(display, DISPLAY);
    const focus = target.closest("#examination-answer [data-focus]")?.dataset.focus;
    if (focus && volume) {
      volume.at = numbers(focus);
      volume.section.querySelector(".plane.main").scrollIntoView({ block: "nearest", behavior: "smooth" }); // on a phone
    }
    if (tool || focus) redraw();
    const series = target.closest("#examination-answer [data-series]");
    if (series && series.ariaCurrent !== "true") {
      window.chosenSeries = Number(series.dataset.series); // the hidden button's event reads it
      document.querySelector("#open-series")?.click();
    }
    if (target.closest(".choose-folder")) chooseFolder();
  });
  const point = (event, frame) => {
    const plane = frame.closest(".plane");
    const axis = Number(plane.dataset.axis);
    const box = frame.getBoundingClientRect();
    const [across, down] = [0, 1, 2].filter((k) => k !== axis);
    go(across, volume.shape[across] * (1 - (event.clientX - box.left) / box.width) - 0.5);
    go(down, volume.shape[down] * (1 - (event.clientY - box.top) / box.height) - 0.5);
  };
  let dragged = null;
  document.addEventListener("pointerdown", (event) => {
    const frame = event.target.closest?.(".plane .frame");
    if (!frame || !volume || event.button) return;
    point(event, frame);
    if (event.pointerType === "touch") return; // a finger scrolls the page
    dragged = frame;
    frame.setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => { if (dragged && volume) point(event, dragged); });
  ["pointerup", "pointercancel"].forEach((name) => document.addEventListener(name, () => { dragged = null; }));
  document.addEventListener("wheel", (event) => {
    const plane = event.target.closest?.(".plane");
    if (!plane || !volume || event.ctrlKey) return;
    const axis = Number(plane.dataset.axis);
    const before = volume.at[axis];
    go(axis, before - Math.sign(event.deltaY) * (axis === volume.axis && volume.flipped ? -1 : 1));
    if (volume.at[axis] !== before) event.preventDefault(); // at the end the page goes on
  }, { passive: false });

  // --- files: a folder dropped or chosen, and volumes dropped on another view ---

  const input = () => document.querySelector("#examination-input input[type=file]");
  const take = (files) => {
    const transfer = new DataTransfer();
    files.filter((file) => !file.name.startsWith(".")).forEach((file) => transfer.items.add(file));
    if (!transfer.files.length) return;
    input().files = transfer.files;
    input().dispatchEvent(new Event("change", { bubbles: true }));
  };
  const chooseFolder = () => {
    const chooser = Object.assign(document.createElement("input"), { type: "file", webkitdirectory: true });
    chooser.addEventListener("change", () => take([...chooser.files]));
    chooser.click();
  };
  const filesOf = async (entry) => {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader();
    const found = [];
    for (;;) { // a hundred at a time
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!entries.length) return found;
      for (const inner of entries) found.push(...await filesOf(inner));
    }
  };
  const isVolume = (file) => /\.(nii|nii\.gz|mgz|mgh|nrrd|mha)$/i.test(file.name);
  document.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const elsewhere = event.target.closest?.("#slice-input, #batch-input") && files.some(isVolume);
    const folder = event.target.closest?.("#examination-input") && entries.some((entry) => entry.isDirectory);
    if (!elsewhere && !folder) return;
    event.preventDefault();
    event.stopPropagation();
    if (folder) Promise.all(entries.map(filesOf)).then((found) => take(found.flat()));
    else {
      [...document.querySelectorAll("#views button[role=tab]")].find((t) => t.textContent.trim() === "Examination")?.click();
      const waiting = setInterval(() => { // the view may be drawn only now
        if (!input()) return;
        clearInterval(waiting);
        take(files);
      }, 50);
    }
  }, true);

  document.addEventListener("paste", ({ clipboardData }) => { // Ctrl+V; page.js has its own views
    if (clipboardData?.files.length && document.querySelector("#examination-input")?.offsetParent) {
      take([...clipboardData.files]);
    }
  });

  // from the moment a file is chosen until the server has it, no other patient's answer is seen
  const stale = (is) => document.documentElement.classList.toggle("examination-stale", is);
  const isInput = (target) => target.closest?.("#examination-input");
  document.addEventListener("change", ({ target }) => { if (isInput(target)) stale(true); }, true);
  document.addEventListener("drop", ({ target, dataTransfer }) => {
    if (isInput(target) && dataTransfer?.files.length) stale(true);
  }, true);

  // --- after each answer ---

  let answered = null;
  let drawn = null;
  const settle = () => {
    const chooser = input();
    if (chooser && !chooser.ariaLabel) chooser.ariaLabel = "Files of one examination";
    document.querySelectorAll("#examination-answer").forEach((answer) => answer.setAttribute("aria-live", "polite"));
    const panel = document.querySelector("#examination-answer [data-drawing]")?.dataset.drawing;
    if (panel !== answered) stale(false);
    answered = panel;
    const section = document.querySelector("#volume-viewer section.volume");
    if (!section?.dataset.shape) { volume = null; drawn = null; return; }
    if (section.dataset.drawing === drawn && (!volume || volume.section === section)) return;
    drawn = section.dataset.drawing;
    load(section).catch(() => {
      section.querySelector(".note").textContent = "The pictures could not be drawn; this browser may be too old.";
    });
  };
  const start = () => {
    new MutationObserver(settle).observe(document.body, {
      childList: true, subtree: true, attributes: true, attributeFilter: ["data-drawing"],
    });
    settle();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
