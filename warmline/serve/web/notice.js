// What everybody is told before the first message: whole the first time, in short at each later start.

import { byId, opened } from "./dom.js";
import { device, tab } from "./stored.js";

/** Show the notice where it is due and resolve once it has been acknowledged. `support()` opens the card. */
export async function acknowledged(support) {
  if (tab.get("told") !== null) return;
  const dialog = byId("notice");
  const known = device.get("told") !== null;
  byId("notice-long").hidden = known;
  byId("notice-short").hidden = !known;
  byId("notice-title").textContent = known ? "Before we go on" : "Before we begin";
  let accepted = false;
  byId("notice-accept").addEventListener("click", () => {
    accepted = true;
    dialog.close();
  });
  byId("notice-support").addEventListener("click", support);
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  while (!accepted) await opened(dialog); // a browser may close it all the same
  tab.set("told", "yes");
  device.set("told", "yes");
}
