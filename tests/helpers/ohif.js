// Opens a study in OHIF as a person would, in a browser without a window: lays its segmentation over the images, picks
// a segment of it in the panel, which leads to the slice in its middle, and takes a picture.
//
//   node ohif.js CHROMIUM PROFILE_FOLDER ADDRESS SEGMENT PICTURE.png
//
// Prints as JSON the names of the segments, the text at the edges of the images, where on the picture the images are
// (left, top, width and height in pixels), and addresses of elsewhere that were asked for. NODE_PATH leads to
// puppeteer-core.
"use strict";

const puppeteer = require("puppeteer-core");

const SECONDS = 60; // for each step, on a machine that does other things besides
const ROWS = '[data-cy="data-row"]';
const IMAGES = '[data-cy="viewport-pane"] canvas';

const arguments_ = ["--no-sandbox"]; // which root and containers do without; the pages are our own
arguments_.push("--use-angle=swiftshader", "--enable-unsafe-swiftshader"); // WebGL without a GPU
arguments_.push("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"); // no network

// Whether the images have colours, and are what they were at the last look.
function settled(selector) {
  const canvas = document.querySelector(selector);
  if (!canvas || !canvas.width) return false;
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let coloured = 0;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    coloured += Math.max(pixels[i], pixels[i + 1], pixels[i + 2]) - Math.min(pixels[i], pixels[i + 1], pixels[i + 2]) > 30;
    sum = (sum * 31 + pixels[i] + 7 * pixels[i + 1] + 13 * pixels[i + 2]) % 1e9;
  }
  const same = window.lastLook === sum;
  window.lastLook = sum;
  return same && coloured > 0;
}

async function look(browser, address, segment, picture) {
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
    await (await page.waitForSelector('[data-cy="study-browser-thumbnail-no-image"]')).click({ count: 2 });
    await (await page.waitForSelector('[data-cy^="panelSegmentation"][data-cy$="-btn"]')).click();
    await (await page.waitForSelector(`${ROWS} ::-p-text(${segment})`)).click();
    await page.waitForFunction(settled, { polling: 400 }, IMAGES);
  } finally {
    await page.screenshot({ path: picture }); // of where it stopped, too
  }
  const text = (selector) => page.$$eval(selector, (found) => found.map((element) => element.innerText));
  const box = await (await page.$(IMAGES)).boundingBox();
  return {
    segments: await text(ROWS),
    overlay: await text('[data-cy^="viewport-overlay"]'),
    box: [box.x, box.y, box.width, box.height],
    outside,
  };
}

async function main() {
  const [executablePath, userDataDir, address, segment, picture] = process.argv.slice(2);
  const defaultViewport = { width: 1400, height: 900 };
  // pipe: the browser ends with this process, however that ends
  const browser = await puppeteer.launch({ executablePath, userDataDir, args: arguments_, defaultViewport, pipe: true });
  try {
    console.log(JSON.stringify(await look(browser, address, segment, picture)));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
