// The trained networks of this page as window.gpumlp:
//
//   networks                             their descriptions: name, classes, height, width, ..., and their members: one
//                                        with sizes, activations and layers, or those of a committee
//   predict(pixels, network = 0)         probabilities, a Float32Array, of an image that is not yet preprocessed
//   activations(pixels, network = 0)     the outputs of each hidden layer, Float32Arrays; none of a committee
//   preprocessed(pixels, network = 0)    such an image after each preprocessing of the network, Float32Arrays
//   centre(ink, width, height, network)  a drawing of ink from 0 to 1, scaled and centred as the training images
//   inputs(image, network = 0)           such an image in the network's scale: 0 is the background's value, 1 the ink's
//   drawing()                            the drawing of the pad, scaled and centred
//
// Sums are computed in double and stored in single precision: probabilities agree with Python's to 1e-4.
"use strict";
window.gpumlp = (() => {
  const networks = JSON.parse(document.getElementById("gpumlp-networks").textContent);
  const decoded = new Map();

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  const floats = (text) => {
    const view = new DataView(bytes(text).buffer);
    return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
  };

  // Weights are whole numbers of 3 bytes, lowest first, times the scale of their unit.
  const decode = (member) =>
    member.layers.map((layer) => {
      const packed = bytes(layer.weights), scales = floats(layer.scales), biases = floats(layer.biases);
      const weights = new Float32Array(packed.length / 3);
      for (let index = 0, place = 0; index < weights.length; index++, place += 3) {
        const whole = ((packed[place + 2] << 24) | (packed[place + 1] << 16) | (packed[place] << 8)) >> 8;
        weights[index] = whole * scales[index % scales.length];
      }
      return { weights, biases };
    });

  const rules = {
    relu: (s) => Math.max(0, s),
    leaky_relu: (s, slope) => Math.max(s, slope * s),
    elu: (s, alpha) => s > 0 ? s : alpha * Math.expm1(s),
    gelu: (s) => s / (1 + Math.exp(-Math.sqrt(8 / Math.PI) * (s + 0.044715 * s * s * s))),
    silu: (s) => s / (1 + Math.exp(-s)),
    softplus: (s) => Math.max(0, s) + Math.log1p(Math.exp(-Math.abs(s))),
    tanh: Math.tanh,
    sigmoid: (s) => 0.5 * (1 + Math.tanh(0.5 * s)),
    identity: (s) => s,
  };

  const membersOf = (network) => {
    if (!networks[network]) throw new RangeError(`there is no network ${network}`);
    return networks[network].members;
  };

  // An image as gpumlp.Preprocessing makes it, which has the equations. With white, pixels are shares of it.
  const resampled = (pixels, columns, { deskew, width, centre, white, ink, steepest, half }) => {
    const image = Float64Array.from(pixels, (value) => white ? Math.round(white * value) : value);
    const sum = (value) =>
      image.reduce((all, p, place) => all + p * value(place % columns, Math.floor(place / columns)), 0);
    const mass = sum(() => 1) || 1, mean = (value) => sum(value) / mass, y0 = mean((x, y) => y);
    let slope = 0, scale = 1, middle = centre;
    if (deskew) {
      const x0 = mean((x) => x), spread = mean((x, y) => (y - y0) ** 2);
      slope = mean((x, y) => (x - x0) * (y - y0)) / (spread || 1);
      slope = Math.max(-steepest, Math.min(steepest, slope));
    }
    const shift = (y) => slope * (y - y0);
    if (width) {
      const least = ink * image.reduce((a, b) => Math.max(a, b));
      let left = columns, right = -1;
      image.forEach((p, place) => {
        if (p <= least) return;
        const upright = place % columns - shift(Math.floor(place / columns));
        left = Math.min(left, upright);
        right = Math.max(right, upright);
      });
      if (right >= left) { scale = (right - left + 1) / width; middle = (left + right) / 2; }
    }
    const reach = Math.max(scale, 1), taps = Math.ceil(reach);
    return Float32Array.from(image, (_, place) => {
      const y = Math.floor(place / columns), source = middle + scale * (place % columns - centre) + shift(y);
      let total = 0, weights = 0;
      for (let tap = 1 - taps; tap <= taps; tap++) {
        const column = Math.floor(source) + tap, weight = Math.max(0, 1 - Math.abs(source - column) / reach);
        weights += weight;
        if (column >= 0 && column < columns) total += weight * image[y * columns + column];
      }
      return white ? Math.floor(total / weights + half) / white : total / weights;
    });
  };

  const preprocessed = (pixels, network = 0) => {
    const expected = membersOf(network)[0].sizes[0], { width, preprocessing } = networks[network];
    if (pixels.length !== expected) throw new RangeError(`expected ${expected} pixels, got ${pixels.length}`);
    return preprocessing.map((each) => each ? resampled(pixels, width, each) : Float32Array.from(pixels));
  };

  const forward = (images, member) => {
    const { activations } = member;
    if (!decoded.has(member)) decoded.set(member, decode(member));
    const layers = decoded.get(member), outputs = [];
    let input = images[member.preprocessing];
    layers.forEach(({ weights, biases }, number) => {
      const units = biases.length, sums = Float64Array.from(biases);
      for (let from = 0, place = 0; from < input.length; from++, place += units) {
        const value = input[from];
        if (value !== 0) for (let unit = 0; unit < units; unit++) sums[unit] += value * weights[place + unit];
      }
      const { name, factor } = activations[number] ?? { name: "identity" };  // none after the last layer
      input = Float32Array.from(sums, (s) => rules[name](s, factor));
      outputs.push(input);
    });
    return outputs;
  };

  const probabilities = (images, member) => {
    const logits = forward(images, member).at(-1);
    const largest = logits.reduce((a, b) => Math.max(a, b));
    const powers = Float64Array.from(logits, (s) => Math.exp(s - largest));
    const total = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / total);
  };

  const predict = (pixels, network = 0) => {
    const images = preprocessed(pixels, network);
    const each = networks[network].members.map((member) => probabilities(images, member));
    return Float32Array.from(each[0], (_, place) => each.reduce((sum, own) => sum + own[place], 0) / each.length);
  };

  const activations = (pixels, network = 0) => {
    const members = membersOf(network);
    return members.length > 1 ? [] : forward(preprocessed(pixels, network), members[0]).slice(0, -1);
  };

  // The cells that each of `count` equal pieces of [from, to) covers, with the covered length of each.
  const pieces = (from, to, count) => Array.from({ length: count }, (_, index) => {
    const start = from + (to - from) * index / count, end = from + (to - from) * (index + 1) / count;
    const first = Math.floor(start), weights = [];
    for (let cell = first; cell < end - 1e-9; cell++) weights.push(Math.min(end, cell + 1) - Math.max(start, cell));
    return { first, weights };
  });

  const centre = (ink, width, height, network = 0) => {
    const field = networks[network], image = new Float32Array(field.height * field.width);
    let left = width, right = -1, top = height, bottom = -1;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (ink[y * width + x] > 0.02) {
      left = Math.min(left, x); right = Math.max(right, x);
      top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    if (right < 0) return image;
    const wide = right + 1 - left, high = bottom + 1 - top;
    const scale = Math.min(field.box[0] / high, field.box[1] / wide);
    const columns = Math.max(1, Math.round(wide * scale)), rows = Math.max(1, Math.round(high * scale));
    const across = pieces(left, right + 1, columns), down = pieces(top, bottom + 1, rows);
    const area = (wide / columns) * (high / rows);
    const small = new Float32Array(rows * columns);
    let mass = 0, massX = 0, massY = 0;
    down.forEach((vertical, row) => across.forEach((horizontal, column) => {
      let sum = 0;
      vertical.weights.forEach((v, dy) => horizontal.weights.forEach((h, dx) => {
        sum += v * h * ink[(vertical.first + dy) * width + horizontal.first + dx];
      }));
      const value = small[row * columns + column] = sum / area;
      mass += value; massX += value * (column + 0.5); massY += value * (row + 0.5);
    }));
    // The centre of mass moves to its usual place, as far as the drawing stays inside.
    const within = (offset, room) => Math.min(Math.max(0, room), Math.max(0, offset));
    const atX = within(Math.round(field.centre[1] - massX / mass), field.width - columns);
    const atY = within(Math.round(field.centre[0] - massY / mass), field.height - rows);
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++)
        image[(atY + row) * field.width + atX + column] = small[row * columns + column];
    return image;
  };

  const inputs = (image, network = 0) => {
    const { background, ink } = networks[network];
    return Float32Array.from(image, (share) => background + share * (ink - background));
  };

  return { networks, predict, activations, preprocessed, centre, inputs, drawing: () => new Float32Array(0) };
})();
