// What this browser remembers. `tab`: until the tab is closed. `device`: until it is taken back. Never a word of a chat.

const holder = (name) => {
  const spare = new Map(); // where storage is switched off or full, the page still works while it is open
  const area = () => {
    try {
      return window[name];
    } catch {
      return null;
    }
  };
  return {
    get(key) {
      try {
        return area()?.getItem(`warmline.${key}`) ?? spare.get(key) ?? null;
      } catch {
        return spare.get(key) ?? null;
      }
    },
    set(key, value) {
      if (value === null) spare.delete(key);
      else spare.set(key, value);
      try {
        if (value === null) area()?.removeItem(`warmline.${key}`);
        else area()?.setItem(`warmline.${key}`, value);
      } catch {
        // kept in `spare`
      }
    },
    clear() {
      spare.clear();
      try {
        area()?.clear();
      } catch {
        // nothing was kept
      }
    },
  };
};

export const tab = holder("sessionStorage");
export const device = holder("localStorage");

/** Random bytes as base64url without padding: 32 bytes make a 256-bit key. */
export function randomText(numBytes) {
  const bytes = crypto.getRandomValues(new Uint8Array(numBytes));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
