// Opens a study in the OHIF that MONAI Label's server serves, as a person would, in a browser without a window: connects
// to the server, runs a network on the study, waits for its overlay and takes a picture.
//
//   node monai_label_ohif.js CHROMIUM PROFILE_FOLDER SERVER STUDY_UID PICTURE.png
//
// Prints as JSON how the server answered Run, how many pixels of the pictures have a colour before and after, the
// names in the panel of segments, and addresses of elsewhere that were asked for. NODE_PATH leads to puppeteer-core.
"use strict";

const puppeteer = require("puppeteer-core");

const SECONDS = 120; // for each step, on a machine that does other things besides
const arguments_ = ["--no-sandbox"]; // which root and containers do without; the pages are our own
arguments_.push("--use-angle=swiftshader", "--enable-unsafe-swiftshader"); // WebGL without a GPU
arguments_.push("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"); // no network

// How many pixels of the images have a colour, once they are what they were at the last look; else -1.
function coloured() {
  let count = 0;
  let sum = 0;
  for (const canvas of document.querySelectorAll(".viewport-element canvas, [data-cy='viewport-pane'] canvas")) {
    if (!canvas.width || !canvas.height || !canvas.getContext("2d")) continue;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) {
      count += Math.max(pixels[i], pixels[i + 1], pixels[i + 2]) - Math.min(pixels[i], pixels[i + 1], pixels[i + 2]) > 30;
      sum = (sum * 31 + pixels[i] + 7 * pixels[i + 1] + 13 * pixels[i + 2]) % 1e9;
    }
  }
  const same = window.lastLook === sum && sum > 0;
  window.lastLook = sum;
  return same ? count : -1;
}

async function press(page, text, tags = "button") {
  const found = await page.waitForFunction(
    (wanted, selector) => [...document.querySelectorAll(selector)].find((e) => e.innerText.trim() === wanted && e.offsetParent),
    {},
    text,
    tags,
  );
  await found.evaluate((element) => element.click());
}

async function look(browser, server, study, picture) {
  const page = await browser.newPage();
  const outside = [];
  page.setDefaultTimeout(SECONDS * 1000);
  page.on("request", (request) => {
    const url = request.url();
    if (url.startsWith("http") && !url.startsWith(server)) outside.push(url);
  });
  // What OHIF shows at the first start has been seen; the server is where the page is.
  await page.evaluateOnNewDocument(() => {
    localStorage.setItem("shownTours", JSON.stringify(["basicViewerTour", "basicTour"]));
    sessionStorage.setItem("investigationalUseDialog", "hidden");
  });
  await browser.setCookie({ name: "MONAILABEL_SERVER_URL", value: `${server}/`, domain: "127.0.0.1", path: "/" });
  try {
    await page.goto(`${server}/ohif/monai-label?StudyInstanceUIDs=${study}`, { waitUntil: "domcontentloaded" });
    const settled = async (least) =>
      (await page.waitForFunction(`(${coloured})() >= ${least}`, { polling: 1000 })) && page.evaluate(`(${coloured})()`);
    const connect = await page.waitForSelector("#monailabelServerURL");
    await connect.evaluate((e) => e.closest("tr").querySelector("button").click());
    await page.waitForResponse((answer) => answer.url().endsWith("/info/"));
    const before = await settled(0);
    await press(page, "Auto-Segmentation", "label");
    const answered = page.waitForResponse((answer) => answer.url().includes("/infer/"));
    await press(page, "Run");
    const status = (await answered).status();
    const after = await settled(before + 1);
    const text = await page.evaluate(() => document.body.innerText);
    return { status, before, after, text, outside };
  } finally {
    await page.screenshot({ path: picture }); // of where it stopped, too
  }
}

async function main() {
  const [executablePath, userDataDir, server, study, picture] = process.argv.slice(2);
  const defaultViewport = { width: 1400, height: 900 };
  // pipe: the browser ends with this process, however that ends
  const browser = await puppeteer.launch({ executablePath, userDataDir, args: arguments_, defaultViewport, pipe: true });
  try {
    console.log(JSON.stringify(await look(browser, server, study, picture)));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
