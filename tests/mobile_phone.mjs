// A phone for the recipe `amo.js`: it calls the recipe's functions on request, and asks the test for all that a phone
// does. Messages are lines of JSON: on stdin, {call, name, args} and {answer, value}; on stdout, {ask, name, args} and
// {done, value} or {failed, text}.
import { createHash, randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { createAmo } from "./amo.mjs";

const asked = new Map();
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const ask = (name) => (...args) =>
  new Promise((resolve) => {
    asked.set(asked.size, resolve);
    say({ ask: asked.size - 1, name, args });
  });

const amo = createAmo({
  base: process.env.BASE,
  deepLink: process.env.DEEP_LINK,
  phone: {
    fetch,
    randomBytes: async (count) => new Uint8Array(randomBytes(count)),
    sha256: async (text) => createHash("sha256").update(text).digest("base64"),
    ...Object.fromEntries(["jwt", "openAuthSession", "save", "load", "remove", "sleep"].map((name) => [name, ask(name)])),
  },
});

for await (const line of createInterface({ input: process.stdin })) {
  const { call, name, args, answer, value } = JSON.parse(line);
  if (call === undefined) asked.get(answer)(value);
  else
    amo[name](...args).then(
      (result) => say({ done: call, value: result }),
      (error) => say({ failed: call, text: String(error) }),
    );
}
