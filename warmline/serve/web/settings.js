// The settings dialog: light or dark, the country for support, whether feelings are shown.

import { countryOptions } from "./card.js";
import { byId, opened } from "./dom.js";
import { device, tab } from "./stored.js";

/** `on.opened()` when it opens, `on.country(code)`, `on.feelings(isShown)`, `on.fresh()` for a new conversation. */
export function setUpSettings(on) {
  const dialog = byId("settings");
  byId("open-settings").addEventListener("click", () => {
    byId("theme").value = device.get("theme") ?? "";
    byId("country").replaceChildren(...countryOptions(tab.get("country") ?? ""));
    byId("show-feelings").checked = tab.get("feelings") !== "hidden";
    on.opened();
    opened(dialog);
  });
  byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
  byId("country").addEventListener("change", (event) => on.country(event.target.value));
  byId("show-feelings").addEventListener("change", (event) => on.feelings(event.target.checked));
  byId("new-conversation").addEventListener("click", () => {
    dialog.close();
    on.fresh();
  });
}

function setTheme(theme) {
  device.set("theme", theme || null);
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** Ask for the server's access key. `again`: the last one was refused. Whether one was given. */
export async function askForKey(again) {
  byId("access-wrong").hidden = !again;
  byId("access-key").value = "";
  const answer = await opened(byId("access"));
  const key = byId("access-key").value.trim();
  byId("access-key").value = "";
  if (answer !== "yes" || key === "") return false;
  tab.set("access", key);
  return true;
}
