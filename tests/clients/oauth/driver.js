// Call AMO once for each line of the input; print the account's id, or the error, its code and its description.
const { createInterface } = require("node:readline");
const { amo } = require("./snippet.js");

async function main() {
  for await (const _ of createInterface({ input: process.stdin })) {
    try {
      console.log((await (await amo("/api/v4/account")).json()).id);
    } catch (error) {
      if (!error.isBoom) throw error;
      const { error: code, error_description: description } = error.data.payload;
      console.log("Boom", code, description);
    }
  }
}

main();
