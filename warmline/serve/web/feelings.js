// The panel with the picture of feelings: shown where something was read, hidden by whoever does not want it.

import { byId } from "./dom.js";
import { tab } from "./stored.js";
import { picture, pointOf, table } from "./timeline.js";

const WIDE = "(min-width: 68rem)"; // below it the panel stays closed until somebody opens it

export class Feelings {
  constructor() {
    this.points = [];
    this.wanted = null; // null: as the width has it
    byId("open-feelings").addEventListener("click", () => this.show(byId("feelings").hidden));
    byId("hide-feelings").addEventListener("click", () => {
      this.show(false);
      byId("open-feelings").focus();
    });
    matchMedia(WIDE).addEventListener("change", () => this.draw());
  }

  add(readings) {
    const point = pointOf(readings);
    if (point === null) return;
    this.points.push(point);
    this.draw();
  }

  clear() {
    this.points = [];
    this.draw();
  }

  /** For good, from the settings: with `false` there is no button either. */
  allow(isAllowed) {
    tab.set("feelings", isAllowed ? null : "hidden");
    this.wanted = null;
    this.draw();
  }

  show(isShown) {
    this.wanted = isShown;
    this.draw();
  }

  draw() {
    const has = this.points.length > 0 && tab.get("feelings") !== "hidden";
    const isShown = has && (this.wanted ?? matchMedia(WIDE).matches);
    byId("open-feelings").hidden = !has;
    byId("open-feelings").setAttribute("aria-expanded", String(isShown));
    byId("feelings").hidden = !isShown;
    if (!isShown) return;
    byId("feelings-picture").replaceChildren(picture(this.points));
    byId("feelings-table").replaceChildren(table(this.points));
  }
}
