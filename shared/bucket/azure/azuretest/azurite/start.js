// Runs Azurite until whoever started it goes away, however that happens: then standard input ends.
process.stdin.on("end", () => process.exit(0)).resume();

// A listing has names that XML cannot carry in percent encoding, and says so. Azurite fails on those, and on what was
// asked for.
const xml = require("azurite/dist/src/blob/generated/utils/xml.js");
const stringify = xml.stringifyXML;
const unfit = /[\u0000-\u0008\u000b-\u001f\ufffe\uffff]/g;
const encoded = (item) => {
  for (const [key, value] of Object.entries(item)) {
    if (typeof value === "string" && value.search(unfit) >= 0) {
      item[key] = key === "Name" ? { $: { Encoded: "true" }, _: encodeURIComponent(value) } : value.replace(unfit, "");
    } else if (value !== null && typeof value === "object") {
      encoded(value);
    }
  }
};
xml.stringifyXML = (obj, opts) => {
  encoded(obj);
  return stringify(obj, opts);
};

require("azurite/dist/src/blob/main.js");
