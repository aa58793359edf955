// Google's clients for Node.js against the emulator: each call is a row with its expected result.
//
// Usage: clients.mjs URL, with the folder that holds the packages in IGA_TEST_NODE_MODULES. The emulator must accept anonymous
// requests, have the bucket of BUCKET and not limit the changes of an object.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const url = process.argv[2];
const host = url.replace("http://", "");
Object.assign(process.env, { STORAGE_EMULATOR_HOST: url, GCE_METADATA_HOST: host, GCE_METADATA_IP: host, NO_PROXY: "127.0.0.1" });

const load = createRequire(`${process.env.IGA_TEST_NODE_MODULES}/`);
const { GoogleAuth } = load("google-auth-library");
const { Storage } = load("@google-cloud/storage");

const BUCKET = "iga-images";
const cloud = new Storage({ projectId: "p1" });
const images = cloud.bucket(BUCKET);
const names = async (query) => (await images.getFiles(query))[0].map((file) => file.name);
const code = (expected) => (error) => error.code === expected;

const rows = {
  "the default credentials are the metadata server's": async () => {
    const auth = new GoogleAuth({ scopes: "https://www.googleapis.com/auth/cloud-platform" });
    assert.equal((await auth.getClient()).constructor.name, "Compute");
    assert.match(await auth.getAccessToken(), /^ya29\./);
    assert.equal(await auth.getProjectId(), "iga-local");
  },
  "the account's name": async () => {
    const { client_email } = await new GoogleAuth().getCredentials();
    assert.equal(client_email, "iga@iga-local.iam.gserviceaccount.com");
  },
  "upload and download": async () => {
    await images.file("node/a.txt").save("hello world", { resumable: false, metadata: { metadata: { k: "v" } } });
    assert.equal((await images.file("node/a.txt").download())[0].toString(), "hello world");
    const [{ size, metadata }] = await images.file("node/a.txt").getMetadata();
    assert.deepEqual([size, metadata], ["11", { k: "v" }]);
  },
  "resumable upload": async () => {
    await images.file("node/big.bin").save(Buffer.alloc(3_000_000, "x"), { resumable: true, validation: "crc32c" });
    assert.equal((await images.file("node/big.bin").getMetadata())[0].size, "3000000");
  },
  "download of a range": async () => {
    assert.equal(await text(images.file("node/a.txt").createReadStream({ start: 6, end: 8 })), "wor");
  },
  "precondition: 412": async () => {
    const again = images.file("node/a.txt").save("x", { resumable: false, preconditionOpts: { ifGenerationMatch: 0 } });
    await assert.rejects(again, code(412));
  },
  "list with a prefix, a delimiter and pages": async () => {
    assert.deepEqual(await names({ prefix: "node/" }), ["node/a.txt", "node/big.bin"]);
    const [, , { prefixes }] = await images.getFiles({ delimiter: "/", autoPaginate: false });
    assert.ok(prefixes.includes("node/"), prefixes);
    const [page, next] = await images.getFiles({ prefix: "node/", maxResults: 1, autoPaginate: false });
    assert.deepEqual([page.length, typeof next.pageToken], [1, "string"]);
    assert.deepEqual(await names({ matchGlob: "node/*.bin" }), ["node/big.bin"]);
  },
  "change of the metadata": async () => {
    const [{ metadata }] = await images.file("node/a.txt").setMetadata({ metadata: { n: "1" } });
    assert.equal(metadata.n, "1");
  },
  "copy, move and combine": async () => {
    await images.file("node/a.txt").copy(images.file("node/b.txt"));
    await images.combine(["node/a.txt", "node/b.txt"], "node/ab.txt");
    assert.equal((await images.file("node/ab.txt").download())[0].length, 22);
    await images.file("node/b.txt").move("node/c.txt");
    assert.deepEqual(await names({ matchGlob: "node/[bc].txt" }), ["node/c.txt"]);
  },
  "exists, delete, 404": async () => {
    await images.file("node/c.txt").delete();
    assert.equal((await images.file("node/c.txt").exists())[0], false);
    await assert.rejects(images.file("node/c.txt").delete(), code(404));
  },
  "buckets": async () => {
    await cloud.createBucket("node-bucket");
    assert.ok((await cloud.getBuckets())[0].some((bucket) => bucket.name === "node-bucket"));
    assert.equal((await cloud.bucket("node-bucket").setLabels({ team: "podcast" }))[0].labels.team, "podcast");
    await cloud.bucket("node-bucket").delete();
    assert.equal((await cloud.bucket("node-bucket").exists())[0], false);
  },
  "permissions and the policy of a bucket": async () => {
    const [held] = await images.iam.testPermissions("storage.objects.create");
    assert.deepEqual(held, { "storage.objects.create": true });
    assert.equal((await images.iam.getPolicy())[0].version, 1);
  },
};

let failures = 0;
for (const [name, call] of Object.entries(rows)) {
  try {
    await call();
  } catch (error) {
    failures += 1;
    console.log(`FAIL ${name}: ${error.message}`);
  }
}
const count = Object.keys(rows).length;
console.log(`${count - failures} of ${count} calls as expected`);
process.exitCode = failures ? 1 : 0;
