// node validate-asyncapi.js FILE: what AsyncAPI's own parser says of a document, as one JSON object.

const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

new Parser().parse(readFileSync(process.argv[2], "utf8")).then(({ document, diagnostics }) => {
  const found = diagnostics.map(({ code, severity, path, message }) => ({
    code, severity, path: path.join("."), message,
  }));
  const channels = document ? document.channels().all().map((channel) => channel.id()) : [];
  console.log(JSON.stringify({ isValid: document !== undefined, channels, found }));
});
