// Parses Mermaid diagrams, a JSON list on standard input, and prints what is wrong with each, a JSON list.

import { JSDOM } from "jsdom";

const { window } = new JSDOM("");
Object.assign(globalThis, { window, document: window.document });
const { default: mermaid } = await import("mermaid");

let input = "";
for await (const chunk of process.stdin) input += chunk;
const problems = [];
for (const diagram of JSON.parse(input)) {
  problems.push(await mermaid.parse(diagram).then(() => "", (error) => String(error)));
}
console.log(JSON.stringify(problems));
