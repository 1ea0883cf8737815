// The card on a page of its own: what the service worker shows when nothing else can be had.

import { drawn, loadCard } from "./card.js";
import { byId } from "./dom.js";
import { setUpExit } from "./exit.js";
import { tab } from "./stored.js";

const place = byId("help-card");

async function show(country, about) {
  const card = await loadCard(country, about);
  const shown = { ...card, actions: card.actions.filter((each) => !["with_me", "hide"].includes(each.id)) };
  const act = async (id, value) => {
    if (id === "country") tab.set("country", value);
    await show(id === "country" ? value : card.country, id === "country" ? about : id);
    place.querySelector(".card-title").focus();
  };
  place.replaceChildren(drawn(shown, act));
}

setUpExit(byId("leave"), () => {});
show(tab.get("country") ?? "", "self");
