#!/usr/bin/env node
// Generates an image with IGA and prints its gs:// URI. It needs Node 18 or later and no package.
//
// Usage: node generate_image.mjs PROMPT [KEY]
//
// IGA_URL is the service's address, http://localhost:5007 by default. With KEY, an idempotency key, a repeated request
// always gets the same image. A private Cloud Run service requires IGA_ID_TOKEN, an ID token for its URL.

import { setTimeout as sleep } from "node:timers/promises";

const url = (process.env.IGA_URL ?? "http://localhost:5007").replace(/\/$/, "");
const idToken = process.env.IGA_ID_TOKEN;
const timeoutSeconds = Number(process.env.IGA_TIMEOUT_SECONDS ?? 20);
// Without a key, IGA takes equal requests within 0.4 s for variants, each with an image of its own.
const waitsSeconds = [0.5, 1];
const longestWaitSeconds = 60;

/** The status and the text of the last response after at most three tries. */
async function generateImage(prompt, key) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers["Idempotency-Key"] = key;
  if (idToken) headers["Authorization"] = `Bearer ${idToken}`;
  const request = { method: "POST", headers, body: JSON.stringify({ prompt }) };
  for (const wait of [...waitsSeconds, null]) {
    let asked = 0;
    try {
      const signal = AbortSignal.timeout(timeoutSeconds * 1000);
      const response = await fetch(`${url}/generate_image`, { ...request, signal });
      const text = await response.text();
      const mayPass = response.status === 429 || response.status >= 500;
      asked = Number(response.headers.get("Retry-After"));
      if (wait === null || !mayPass || asked > longestWaitSeconds) return { status: response.status, text };
    } catch (error) {
      if (wait === null) throw error;
    }
    await sleep(Math.max(wait, asked) * 1000);
  }
}

const [prompt, key] = process.argv.slice(2);
if (!prompt) {
  console.error("Usage: node generate_image.mjs PROMPT [KEY]");
  process.exit(2);
}
try {
  const { status, text } = await generateImage(prompt, key);
  if (status === 200) {
    console.log(JSON.parse(text).image_url);
  } else {
    console.error(`${status} ${text}`);
    process.exitCode = 1;
  }
} catch (error) {
  console.error(`no response: ${error.cause ?? error}`);
  process.exitCode = 1;
}
