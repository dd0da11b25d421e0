"use strict";
// Shows the values under the pointer; the page says all without it.
const tip = document.getElementById("tip");

function pointsOf(path) {
  if (path.points) return path.points;
  const points = [];
  let x = 0, y = 0;
  for (const [, command, a, b] of path.getAttribute("d").matchAll(/([Ml])(-?\d+) ?(-?\d+)/g)) {
    [x, y] = command === "M" ? [+a, +b] : [x + +a, y + +b];
    points.push([x, y]);
  }
  return (path.points = points);
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}

function valueAt(svg, y) {
  const [low, high, log] = svg.dataset.y.split(" ").map(Number), share = 1 - y / 1000;
  return log ? low * (high / low) ** share : low + (high - low) * share;
}

function show(event) {
  const plot = event.target.closest(".plot");
  if (!plot) return void (tip.hidden = true);
  const svg = plot.querySelector("svg"), box = svg.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * 1000;
  const [low, high, unit] = svg.dataset.x.split(" ").map(Number);
  const lines = [`${((low + (high - low) * x / 1000) / unit).toLocaleString("en", {maximumSignificantDigits: 4})} ${svg.dataset.label}`];
  for (const path of svg.querySelectorAll("path.line")) {
    const points = pointsOf(path);
    if (!points.length || x < points[0][0] - 20 || x > points[points.length - 1][0] + 20) continue;
    lines.push(`${path.dataset.name}: ${valueAt(svg, nearest(points, x)[1]).toPrecision(4)}`);
  }
  if (event.target.title) lines.push(event.target.title);
  tip.textContent = lines.join("\n");
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(event.pageX + 12, scrollX + innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${event.pageY + 14}px`;
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerleave", () => (tip.hidden = true));
