// Leaving at once: what stands on the page goes first, then another page takes this one's place in the history.

import { tab } from "./stored.js";

const ELSEWHERE = "https://www.bbc.com/weather"; // asked for only when somebody leaves
const TWICE_MS = 800; // from one Escape to the next

/** `forget()` drops what the page holds in memory. */
export function setUpExit(button, forget) {
  const leave = () => {
    tab.clear();
    document.title = "Weather";
    document.documentElement.replaceChildren(document.createElement("body"));
    forget();
    location.replace(ELSEWHERE);
  };
  let last = -Infinity;
  button.addEventListener("click", leave);
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape" || event.repeat) return;
      if (event.timeStamp - last < TWICE_MS) leave();
      last = event.timeStamp;
    },
    { capture: true },
  );
}
