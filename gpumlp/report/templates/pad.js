// The drawing pad: strokes from pointer or keyboard, and the answer of the chosen network.
"use strict";
(() => {
  const { networks, predict, activations, preprocessed, centre, inputs } = window.gpumlp;
  const find = (id) => document.getElementById(id);
  const pad = find("pad"), seen = find("pad-seen"), bars = find("pad-bars"), result = find("pad-result");
  const chooser = find("pad-network"), hidden = find("pad-hidden"), brushText = find("pad-brush");
  const LONG = 280;  // cells of the raster along the longer side
  const PEN = 0.085;  // of the pad's longer side
  const STEP = 1 / 28;
  let network = 0, width, height, strokes = [], stroke = null, image, timer, scheduled = false;
  let brush = null, penDown = false;  // of the keyboard, in shares of the longer side

  const raster = document.createElement("canvas");
  const colour = (name) => getComputedStyle(pad).getPropertyValue(name).trim();

  const paint = (canvas, ink, paper) => {
    const context = canvas.getContext("2d", { willReadFrequently: canvas === raster });
    const scale = canvas === raster ? LONG : Math.max(canvas.width, canvas.height);
    context.fillStyle = paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = context.fillStyle = ink;
    context.lineWidth = PEN * scale;
    context.lineCap = context.lineJoin = "round";
    for (const points of strokes) {
      context.beginPath();
      context.moveTo(points[0].x * scale, points[0].y * scale);
      for (const { x, y } of points) context.lineTo(x * scale, y * scale);
      if (points.length === 1) context.lineTo(points[0].x * scale + 0.01, points[0].y * scale);
      context.stroke();
    }
    return context;
  };

  const drawPad = () => {
    const context = paint(pad, colour("--ink"), colour("--paper"));
    const scale = Math.max(pad.width, pad.height);
    if (brush && document.activeElement === pad) {
      context.strokeStyle = colour("--accent");
      context.lineWidth = 4;
      context.beginPath();
      context.arc(brush.x * scale, brush.y * scale, PEN * scale / 2 + 3, 0, 2 * Math.PI);
      if (penDown) { context.fillStyle = colour("--accent"); context.fill(); }
      context.stroke();
    }
  };

  const drawSeen = (images) => {
    const { background, ink } = networks[network];
    images.forEach((image, number) => {
      const canvas = seen.querySelectorAll("canvas")[number], context = canvas.getContext("2d");
      const pixels = context.createImageData(canvas.width, canvas.height);
      image.forEach((value, place) => {
        const level = 255 * (value - background) / (ink - background);
        pixels.data.set([level, level, level, 255], 4 * place);
      });
      context.putImageData(pixels, 0, 0);
    });
  };

  const drawHidden = (layers) => {
    const positive = colour("--accent"), negative = colour("--wrong"), blank = colour("--paper");
    layers.forEach((outputs, number) => {
      const canvas = hidden.querySelectorAll("canvas")[number], context = canvas.getContext("2d");
      const columns = Number(canvas.dataset.columns), cell = Number(canvas.dataset.cell);
      const largest = outputs.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
      context.clearRect(0, 0, canvas.width, canvas.height);
      outputs.forEach((value, unit) => {
        const x = unit % columns * cell, y = Math.floor(unit / columns) * cell;
        context.globalAlpha = 1;
        context.fillStyle = blank;
        context.fillRect(x, y, cell - 1, cell - 1);
        context.globalAlpha = Math.abs(value) / largest;
        context.fillStyle = value < 0 ? negative : positive;
        context.fillRect(x, y, cell - 1, cell - 1);
      });
      const active = outputs.reduce((count, value) => count + (value > 0), 0);
      const words = strokes.length ? `${active} of ${outputs.length} units above 0, largest ${largest.toFixed(2)}` : `${outputs.length} units`;
      hidden.querySelectorAll("figcaption span")[number].textContent = words;
      canvas.setAttribute("aria-label", `Hidden layer ${number + 1}: ${words}`);
    });
  };

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  const update = () => {
    scheduled = false;
    drawPad();
    const context = paint(raster, "#fff", "#000");
    const data = context.getImageData(0, 0, raster.width, raster.height).data;
    const ink = new Float32Array(raster.width * raster.height);
    for (let place = 0; place < ink.length; place++) ink[place] = data[4 * place] / 255;
    image = centre(ink, raster.width, raster.height, network);
    const pixels = inputs(image, network), empty = strokes.length === 0;
    drawSeen(preprocessed(pixels, network));
    const shares = predict(pixels, network);
    drawHidden(activations(pixels, network));
    const best = shares.reduce((top, share, place) => share > shares[top] ? place : top, 0);
    [...bars.children].forEach((row, place) => {
      row.querySelector(".fill").style.width = empty ? "0" : `${100 * shares[place]}%`;
      row.querySelector(".value").textContent = empty ? "–" : percent(shares[place]);
      row.classList.toggle("best", !empty && place === best);
    });
    // Announced after a pause, so that a screen reader can finish.
    clearTimeout(timer);
    timer = setTimeout(() => {
      const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]);
      result.textContent = empty ? "Draw something." : `It looks like ${networks[network].classes[order[0]]}, ${percent(shares[order[0]])}; next ${networks[network].classes[order[1]]}, ${percent(shares[order[1]])}.`;
      const label = empty ? "Nothing yet" : "Your drawing, scaled and centred";
      for (const canvas of seen.querySelectorAll("canvas")) canvas.setAttribute("aria-label", label);
    }, 400);
  };

  const soon = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(update);
  };

  const place = (event) => {
    const box = pad.getBoundingClientRect(), inside = getComputedStyle(pad);
    const border = parseFloat(inside.borderLeftWidth), long = Math.max(box.width, box.height) - 2 * border;
    return { x: (event.clientX - box.left - border) / long, y: (event.clientY - box.top - border) / long };
  };

  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    event.preventDefault();
    pad.focus({ preventScroll: true });
    pad.setPointerCapture(event.pointerId);
    lift();
    brush = null;
    strokes.push(stroke = [place(event)]);
    soon();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!stroke || !pad.hasPointerCapture(event.pointerId)) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const part of events.length ? events : [event]) stroke.push(place(part));
    soon();
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
    pad.addEventListener(end, () => { stroke = null; });

  const say = (text) => { brushText.textContent = text; };
  const lift = () => { if (penDown) { penDown = false; say("brush up"); } };

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  pad.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    brush ??= { x: width / 2, y: height / 2 };
    if (move) {
      const far = STEP * (event.shiftKey ? 3 : 1);
      brush = {
        x: Math.min(width, Math.max(0, brush.x + move[0] * far)),
        y: Math.min(height, Math.max(0, brush.y + move[1] * far)),
      };
      if (penDown) strokes.at(-1).push(brush);
    } else if (event.key === " ") {
      if (penDown) lift(); else { penDown = true; strokes.push([brush]); say("brush down"); }
    } else if (event.key === "Escape") lift();
    else if (event.key === "z" || event.key === "Z" || event.key === "Backspace") undo();
    else if (event.key === "c" || event.key === "C" || event.key === "Delete") clear();
    else return;
    event.preventDefault();
    soon();
  });
  for (const kind of ["focus", "blur"]) pad.addEventListener(kind, () => { if (kind === "blur") lift(); drawPad(); });

  const undo = () => { lift(); stroke = null; strokes.pop(); soon(); };
  const clear = () => { lift(); stroke = null; strokes = []; soon(); };
  find("pad-undo").addEventListener("click", undo);
  find("pad-clear").addEventListener("click", clear);

  const element = (name, className, text = "") => {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  };

  const setUp = () => {
    const field = networks[network], longer = Math.max(field.height, field.width);
    width = field.width / longer;
    height = field.height / longer;
    pad.width = 2 * LONG * width;
    pad.height = 2 * LONG * height;
    raster.width = Math.round(LONG * width);
    raster.height = Math.round(LONG * height);
    seen.replaceChildren(...field.preprocessing.map((each) => {
      const figure = element("figure", ""), canvas = document.createElement("canvas");
      Object.assign(canvas, { width: field.width, height: field.height });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "Nothing yet");
      const done = [each?.deskew && "deskewed", each?.width && `${each.width} pixels wide`].filter(Boolean).join(", ");
      figure.append(canvas);
      if (done || field.preprocessing.length > 1) figure.append(element("figcaption", "", done || "unchanged"));
      return figure;
    }));
    find("pad-seen-text").textContent = `${field.width} × ${field.height} pixels: the drawing scaled to ${field.box[1]} × ${field.box[0]} and centred`;
    bars.replaceChildren(...Array.from({ length: field.classes.length }, (_, label) => {
      const row = element("li", ""), track = element("span", "track");
      track.append(element("span", "fill"));
      row.append(element("span", "label", field.classes[label]), track, element("span", "value", "–"));
      return row;
    }));
    bars.classList.toggle("many", field.classes.length > 12);
    const shown = field.members.length > 1 ? [] : field.members[0].sizes.slice(1, -1);  // of a committee none
    hidden.replaceChildren(...shown.map((units, number) => {
      const figure = element("figure", ""), caption = element("figcaption", ""), canvas = document.createElement("canvas");
      const columns = Math.min(units, units > 256 ? 64 : 32), cell = 14;
      Object.assign(canvas, { width: columns * cell, height: Math.ceil(units / columns) * cell });
      canvas.dataset.columns = columns;
      canvas.dataset.cell = cell;
      canvas.setAttribute("role", "img");
      caption.append(element("b", "", `Hidden layer ${number + 1}`), " ", element("span", "quiet"));
      figure.append(caption, canvas);
      return figure;
    }));
    update();
  };

  chooser?.addEventListener("change", () => { network = Number(chooser.value); setUp(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  window.gpumlp.drawing = () => image;
  setUp();
})();
