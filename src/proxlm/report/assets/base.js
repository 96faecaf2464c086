"use strict";
/* What the page holds, and helpers that every part uses. Texts only ever enter the page as text. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const format = (v) => v === null || v === undefined ? "–" : v === 0 ? "0"
  : Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3 ? v.toExponential(3) : String(Number(v.toPrecision(5)));

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/* A row of buttons of which one is pressed. */
function choice(place, labels, chosen, onChoose) {
  const press = (i) => {
    [...place.children].forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    onChoose(i);
  };
  const button = (label, i) => make("button", {type: "button", onclick: () => press(i)}, label);
  place.replaceChildren(...labels.map(button));
  press(chosen);
}
