// MQTT.js over each way that it is told: publishes numbers to itself, and says for each way which of them came.
// Its one argument is JSON: [{ "url", "version": 4 or 5, "ca": file or null, "count" }, …]
"use strict";

const fs = require("node:fs");
const mqtt = require("mqtt");

function exchange(way, number) {
  return new Promise((resolve) => {
    const topic = `peers/javascript/${number}`;
    const received = [];
    const client = mqtt.connect(way.url, {
      protocolVersion: way.version,
      ca: way.ca ? fs.readFileSync(way.ca) : undefined,
      reconnectPeriod: 0,
    });
    const end = (error) => {
      client.end(true);
      resolve({ ...way, received, error: error ? String(error) : null });
    };
    client.on("error", end);
    client.on("close", () => end(received.length < way.count ? "closed" : null));
    client.on("message", (_topic, payload, packet) => {
      received.push([Number(payload.toString()), packet.qos]);
      if (received.length === way.count) client.end(false, () => end(null));
    });
    client.on("connect", () => {
      client.subscribe(topic, { qos: 2 }, (error) => {
        if (error) return end(error);
        for (let at = 0; at < way.count; at += 1) {
          client.publish(topic, String(at), { qos: at % 3 });
        }
      });
    });
  });
}

async function main() {
  const ways = JSON.parse(process.argv[2]);
  for (const [number, way] of ways.entries()) {
    console.log(JSON.stringify(await exchange(way, number)));
  }
}

main();
