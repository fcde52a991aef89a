// SPDX-License-Identifier: Apache-2.0
// The viewer of a report: three planes to scroll, display windows, outlines and heat maps. Needs no network.
"use strict";

(async () => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const status = root.querySelector("[data-status]");
  if (typeof DecompressionStream === "undefined") {
    status.textContent = "This browser is too old for the viewer; the pictures show the same result.";
    root.replaceChildren(root.querySelector("h2"), status);
    root.hidden = false;
    return;
  }

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const [nk, nj, ni] = data.shape;
  const size = [ni, nj, nk];
  const image = await unpack(data.image);
  const labels = await unpack(data.labels);
  const maps = await Promise.all(data.maps.map((map) => unpack(map.data)));
  const candidates = data.candidates.data && await unpack(data.candidates.data);
  const strides = [1, ni, ni * nj];
  // The CT, and the CT without each lesion that was replaced.
  const edits = await Promise.all(data.edits.map(async (edit) => ({ ...edit, values: await unpack(edit.data) })));
  const edited = (edit) => {
    const copy = image.slice();
    const [depth, height, width] = edit.shape;
    const [k0, j0, i0] = edit.start;
    for (let k = 0; k < depth; k++) {
      for (let j = 0; j < height; j++) {
        const row = edit.values.subarray((k * height + j) * width, (k * height + j + 1) * width);
        copy.set(row, (k0 + k) * strides[2] + (j0 + j) * strides[1] + i0);
      }
    }
    return copy;
  };
  let shown = image;

  // Which axis runs to the right and down, and which is sliced; superior is at the top.
  const planes = {
    axial: { right: 0, down: 1, normal: 2, flipped: false, letters: "RLAP" },
    coronal: { right: 0, down: 2, normal: 1, flipped: true, letters: "RLSI" },
    sagittal: { right: 1, down: 2, normal: 0, flipped: true, letters: "APSI" },
  };
  const state = { position: size.map((n) => n >> 1), preset: Object.keys(data.presets)[0], map: maps.length - 1 };
  const controls = {};
  for (const control of root.querySelectorAll("[data-control]")) controls[control.dataset.control] = control;

  const heatColor = (heat) => {
    const place = Math.min(heat, 0.9999) * (data.heat_colors.length - 1);
    const [low, high] = [data.heat_colors[Math.floor(place)], data.heat_colors[Math.floor(place) + 1]];
    return low.map((value, n) => value + (high[n] - value) * (place - Math.floor(place)));
  };
  const heatColors = Array.from({ length: 256 }, (_, n) => heatColor(n / 255));

  // The index of a pixel of a plane through the current position.
  const indexer = (plane) => {
    const base = state.position[plane.normal] * strides[plane.normal];
    const [right, down, last] = [strides[plane.right], strides[plane.down], size[plane.down] - 1];
    return (x, y) => base + x * right + (plane.flipped ? last - y : y) * down;
  };

  const paintPixels = (plane, pixels, width, height) => {
    const [level, breadth] = data.presets[state.preset];
    const grays = Array.from({ length: 256 }, (_, n) => {
      const hu = data.lowest_hu + n * data.step_hu;
      return Math.max(0, Math.min(255, (255 * (hu - level + breadth / 2)) / breadth));
    });
    const heat = state.map >= 0 ? maps[state.map] : null;
    const opacity = Number(controls.opacity.value);
    const threshold = 255 * Number(controls.threshold.value);
    const indexAt = indexer(plane);
    for (let y = 0, n = 0; y < height; y++) {
      for (let x = 0; x < width; x++, n += 4) {
        const index = indexAt(x, y);
        const gray = grays[shown[index]];
        const painted = heat && heat[index] > 0 && heat[index] >= threshold;
        for (let c = 0; c < 3; c++) {
          pixels[n + c] = painted ? gray * (1 - opacity) + heatColors[heat[index]][c] * opacity : gray;
        }
        pixels[n + 3] = 255;
      }
    }
  };

  // The outline of the voxels that `holds` says yes to, by their index.
  const strokeOutline = (plane, context, width, height, holds, color, dashes) => {
    const indexAt = indexer(plane);
    const [scaleX, scaleY] = [context.canvas.width / width, context.canvas.height / height];
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && holds(indexAt(x, y));
    context.beginPath();
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (!inside(x, y)) continue;
        const [left, top, right, bottom] = [x * scaleX, y * scaleY, (x + 1) * scaleX, (y + 1) * scaleY];
        if (!inside(x - 1, y)) { context.moveTo(left, top); context.lineTo(left, bottom); }
        if (!inside(x + 1, y)) { context.moveTo(right, top); context.lineTo(right, bottom); }
        if (!inside(x, y - 1)) { context.moveTo(left, top); context.lineTo(right, top); }
        if (!inside(x, y + 1)) { context.moveTo(left, bottom); context.lineTo(right, bottom); }
      }
    }
    context.lineWidth = 1.6;
    context.setLineDash(dashes);
    context.strokeStyle = `rgb(${color.join(",")})`;
    context.stroke();
    context.setLineDash([]);
  };

  const markPosition = (plane, context, canvas, height) => {
    const x = ((state.position[plane.right] + 0.5) * canvas.width) / size[plane.right];
    const row = plane.flipped ? height - 1 - state.position[plane.down] : state.position[plane.down];
    const y = ((row + 0.5) * canvas.height) / height;
    context.strokeStyle = "#9ecae1";
    context.lineWidth = 1;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [
      [x, 0, x, 12], [x, canvas.height - 12, x, canvas.height],
      [0, y, 12, y], [canvas.width - 12, y, canvas.width, y],
    ]) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
    context.stroke();
    context.font = "bold 14px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const places = [[12, canvas.height / 2], [canvas.width - 12, canvas.height / 2],
      [canvas.width / 2, 12], [canvas.width / 2, canvas.height - 12]];
    places.forEach(([left, top], n) => {
      context.lineWidth = 3;
      context.strokeStyle = "black";
      context.strokeText(plane.letters[n], left, top);
      context.fillStyle = "white";
      context.fillText(plane.letters[n], left, top);
    });
  };

  const draw = (name) => {
    const plane = planes[name];
    const canvas = root.querySelector(`canvas[data-plane="${name}"]`);
    const [width, height] = [size[plane.right], size[plane.down]];
    const aspect = (height * data.spacing[plane.down]) / (width * data.spacing[plane.right]);
    canvas.width = 480;
    canvas.height = Math.round(480 * aspect);
    const small = new OffscreenCanvas(width, height);
    const pixels = new ImageData(width, height);
    paintPixels(plane, pixels.data, width, height);
    small.getContext("2d").putImageData(pixels, 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (controls.outlines.checked) {
      for (const label of Object.values(data.names)) {
        strokeOutline(plane, context, width, height, (n) => label.values.includes(labels[n]), label.color, []);
      }
    }
    if (candidates && controls.candidates.checked) {
      strokeOutline(plane, context, width, height, (n) => candidates[n] > 0, data.candidates.color, [4, 3]);
    }
    markPosition(plane, context, canvas, height);
    const slider = root.querySelector(`input[data-plane="${name}"]`);
    slider.max = size[plane.normal] - 1;
    slider.value = state.position[plane.normal];
  };

  const describe = () => {
    const lps = state.position.map((n, axis) => data.origin[axis] + n * data.spacing[axis]);
    const directions = [["L", "R"], ["P", "A"], ["S", "I"]];
    const place = lps.map((mm, axis) => `${directions[axis][mm >= 0 ? 0 : 1]} ${Math.abs(mm).toFixed(0)}`).join(", ");
    const index = state.position.reduce((sum, n, axis) => sum + n * strides[axis], 0);
    const stored = shown[index];
    const hu = data.lowest_hu + stored * data.step_hu;
    const bound = stored === 0 ? "at most " : stored === 255 ? "at least " : "about ";
    const label = data.names[labels[index]];
    const candidate = candidates && candidates[index] > 0 ? ", a candidate" : "";
    status.textContent = `${place} mm: ${bound}${hu} HU, ${label ? label.name : "no label"}${candidate}`;
  };

  let scheduled = false;
  const update = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      Object.keys(planes).forEach(draw);
      describe();
    });
  };

  const moveTo = (position) => {
    state.position = position.map((n, axis) => Math.max(0, Math.min(size[axis] - 1, Math.round(n))));
    update();
  };
  const scroll = (plane, steps) => {
    const position = [...state.position];
    position[plane.normal] += steps;
    moveTo(position);
  };
  const choosePreset = (name) => {
    state.preset = name;
    controls.preset.value = name;
    update();
  };

  for (const [name, plane] of Object.entries(planes)) {
    const canvas = root.querySelector(`canvas[data-plane="${name}"]`);
    const pick = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * size[plane.right]);
      const y = Math.floor(((event.clientY - box.top) / box.height) * size[plane.down]);
      const position = [...state.position];
      position[plane.right] = x;
      position[plane.down] = plane.flipped ? size[plane.down] - 1 - y : y;
      moveTo(position);
    };
    canvas.addEventListener("pointerdown", pick);
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
    // Only a focused picture scrolls with the wheel: otherwise the page could not be scrolled past it.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      scroll(plane, Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      const number = Number(event.key);
      if (steps) scroll(plane, steps);
      else if (event.key === "o") { controls.outlines.checked = !controls.outlines.checked; update(); }
      else if (number >= 1 && number <= Object.keys(data.presets).length) {
        choosePreset(Object.keys(data.presets)[number - 1]);
      } else return;
      event.preventDefault();
    });
    root.querySelector(`input[data-plane="${name}"]`).addEventListener("input", (event) => {
      const position = [...state.position];
      position[plane.normal] = Number(event.target.value);
      moveTo(position);
    });
  }

  controls.preset.replaceChildren(...Object.entries(data.presets).map(([name, [level, width]]) =>
    new Option(`${name}: level ${level}, width ${width} HU`, name)));
  controls.map.replaceChildren(...data.maps.map((map, n) => new Option(map.title, n)), new Option("none", -1));
  controls.map.value = state.map;
  controls.edit.replaceChildren(new Option("as it is", -1), ...edits.map((edit, n) => new Option(edit.title, n)));
  controls.edit.parentElement.hidden = edits.length === 0;
  controls.edit.addEventListener("change", () => {
    const edit = edits[Number(controls.edit.value)];
    shown = edit ? edited(edit) : image;
    const middle = edit && edit.start.map((first, axis) => first + edit.shape[axis] / 2).reverse();
    if (middle) moveTo(middle); else update();
  });
  controls.preset.addEventListener("change", () => choosePreset(controls.preset.value));
  controls.map.addEventListener("change", () => { state.map = Number(controls.map.value); update(); });
  controls.candidates.parentElement.hidden = !candidates;
  for (const name of ["outlines", "candidates", "opacity", "threshold"]) controls[name].addEventListener("input", update);

  for (const button of document.querySelectorAll("button[data-lesion], button[data-candidate], button[data-rejected]")) {
    const { lesion, candidate, rejected } = button.dataset;
    const place = lesion ? data.lesions[lesion] : candidate ? data.candidates.places[candidate] : data.rejected[rejected];
    button.disabled = false;
    button.addEventListener("click", () => {
      moveTo(place.map((mm, axis) => (mm - data.origin[axis]) / data.spacing[axis]));
      root.scrollIntoView({ block: "nearest" });
    });
  }
  const first = data.lesions[1];
  if (first) moveTo(first.map((mm, axis) => (mm - data.origin[axis]) / data.spacing[axis]));
  root.hidden = false;
  root.dataset.ready = "true";
  update();
})();
