// A slider or the pointer selects an epoch, and the values of all lines there are shown.
"use strict";
for (const group of document.querySelectorAll(".chart-group")) {
  const charts = JSON.parse(group.querySelector(".chart-data").textContent);
  const slider = group.querySelector("input");
  if (!slider) continue;
  const pictures = [...group.querySelectorAll("figure.chart > svg")];
  const readout = group.querySelector(".readout"), at = group.querySelector(".at");

  const text = (value, unit) =>
    unit === "%" ? (100 * value).toFixed(2) + " %" : String(Number(value.toPrecision(4)));

  const show = (cursor) => {
    const epoch = Number(slider.value);
    at.textContent = `${epoch} of ${slider.max}`;
    readout.replaceChildren(...charts.map((chart) => {
      const part = document.createElement("p");
      const title = document.createElement("b"), index = Math.round((epoch - chart.first) / chart.step);
      title.textContent = chart.title;
      part.append(title, " ", chart.lines
        .filter((line) => typeof line.values[index] === "number")
        .map((line) => `${line.label} ${text(line.values[index], chart.unit)}`).join(" · ") || "–");
      return part;
    }));
    for (const picture of pictures) {
      const { first, last, epochs } = picture.dataset, line = picture.querySelector(".cursor");
      const x = Number(epochs) > 1 ? Number(first) + (epoch - 1) / (Number(epochs) - 1) * (Number(last) - Number(first)) : Number(first);
      line.setAttribute("transform", `translate(${x} 0)`);
      line.toggleAttribute("hidden", !cursor || epoch > Number(epochs));
    }
  };

  slider.addEventListener("input", () => show(true));
  for (const picture of pictures) {
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect(), { first, last, epochs } = picture.dataset;
      const x = (event.clientX - box.left) / box.width * 560;
      const share = Math.min(1, Math.max(0, (x - Number(first)) / (Number(last) - Number(first) || 1)));
      const epoch = 1 + Math.round(share * (Number(epochs) - 1));
      if (epoch === Number(slider.value) && !picture.querySelector(".cursor").hasAttribute("hidden")) return;
      slider.value = epoch;
      show(true);
    });
  }
  show(false);
}
