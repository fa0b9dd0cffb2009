// Connect each https request to the stand-in for AMO at AMO_PORT, whatever its host.
const https = require("node:https");

const lookup = (_host, _options, done) => done(null, [{ address: "127.0.0.1", family: 4 }]);
https.globalAgent = new https.Agent({ port: process.env.AMO_PORT, lookup });
