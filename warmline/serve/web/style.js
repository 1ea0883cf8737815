// The tone and the persona that somebody chose: tags of the system turn, which the server writes.

import { byId, el, opened } from "./dom.js";
import { tab } from "./stored.js";

const CHOICES = {
  tone: ["warm", "gentle", "supportive", "calm", "encouraging", "empathetic"],
  persona: ["best friend", "counselor", "mentor", "peer", "companion"],
};

/** What rides in the request; nothing where nothing was chosen. */
export function chosenStyle() {
  const style = {};
  for (const [kind, values] of Object.entries(CHOICES)) {
    const value = tab.get(kind);
    if (values.includes(value)) style[kind] = value;
  }
  return style;
}

export function setUpStyle() {
  for (const [kind, values] of Object.entries(CHOICES)) {
    const chips = [["", "as it comes"], ...values.map((value) => [value, value])].map(([value, label]) => {
      const chosen = (chosenStyle()[kind] ?? "") === value;
      const radio = el("input", { type: "radio", name: kind, value, checked: chosen });
      radio.addEventListener("change", () => {
        tab.set(kind, value || null);
        tell();
      });
      return el("label", { class: "chip" }, radio, el("span", {}, label));
    });
    byId(`${kind}s`).append(...chips);
  }
  byId("open-style").addEventListener("click", () => opened(byId("style")));
  tell();
}

function tell() {
  const { tone, persona } = chosenStyle();
  byId("open-style").textContent = `Style: ${[tone, persona].filter(Boolean).join(", ") || "as it comes"}`;
}
