// What drives Chromium without a window, and takes a picture of what it shows.
//
//   node SCRIPT.js CHROMIUM PROFILE_FOLDER ADDRESS WHAT PICTURE.png
//
// A script hands over what is done with the page at an address; what that gives is printed as JSON, with the addresses
// of elsewhere that were asked for. NODE_PATH leads to puppeteer-core.
"use strict";

const puppeteer = require("puppeteer-core");

const SECONDS = 60; // for each step, on a machine that does other things besides

const arguments_ = ["--no-sandbox"]; // which root and containers do without; the pages are our own
arguments_.push("--use-angle=swiftshader", "--enable-unsafe-swiftshader"); // WebGL without a GPU
arguments_.push("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"); // no network

async function open(browser, look, address, what, picture) {
  const page = await browser.newPage();
  const outside = [];
  page.setDefaultTimeout(SECONDS * 1000);
  page.on("request", (request) => {
    const url = request.url();
    if (url.startsWith("http") && !url.startsWith(new URL(address).origin)) outside.push(url);
  });
  // What OHIF shows at the first start has been seen.
  await page.evaluateOnNewDocument(() => {
    localStorage.setItem("shownTours", JSON.stringify(["basicViewerTour"]));
    sessionStorage.setItem("investigationalUseDialog", "hidden");
  });
  await page.goto(address, { waitUntil: "domcontentloaded" });
  try {
    return { ...(await look(page, what)), outside };
  } finally {
    await page.screenshot({ path: picture }); // of where it stopped, too
  }
}

async function drive(look) {
  const [executablePath, userDataDir, ...asked] = process.argv.slice(2);
  const defaultViewport = { width: 1400, height: 900 };
  // pipe: the browser ends with this process, however that ends
  const browser = await puppeteer.launch({ executablePath, userDataDir, args: arguments_, defaultViewport, pipe: true });
  try {
    console.log(JSON.stringify(await open(browser, look, ...asked)));
  } finally {
    await browser.close();
  }
}

exports.drive = (look) =>
  drive(look).catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });

// How many pixels of the pictures have a colour, `{count}`, once these are what they were at the last look, and at least
// so many have one; else null. It runs in the page.
exports.coloured = function (selector, least) {
  let count = 0;
  let sum = 0;
  for (const canvas of document.querySelectorAll(selector)) {
    if (!canvas.width || !canvas.height) continue;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) {
      count += Math.max(pixels[i], pixels[i + 1], pixels[i + 2]) - Math.min(pixels[i], pixels[i + 1], pixels[i + 2]) > 30;
      sum = (sum * 31 + pixels[i] + 7 * pixels[i + 1] + 13 * pixels[i + 2]) % 1e9;
    }
  }
  const same = window.lastLook === sum && sum > 0;
  window.lastLook = sum;
  return same && count >= least ? { count } : null;
};
