// Runs a network on a study in the OHIF that MONAI Label's server serves, as a person would: connects to the server,
// presses Run, waits for the overlay and takes a picture.
//
//   node monai_label_ohif.js CHROMIUM PROFILE_FOLDER ADDRESS SERVER PICTURE.png
//
// Prints as JSON the status of the answer to Run, how many pixels of the images have a colour before and afterwards,
// what the page says, and addresses of elsewhere that were asked for. See browser.js.
"use strict";

const { drive, coloured } = require("./browser");

const IMAGES = '[data-cy="viewport-pane"] canvas';

async function press(page, tag, text) {
  const shown = (wanted, name) =>
    [...document.querySelectorAll(name)].find((e) => e.innerText.trim() === wanted && e.offsetParent);
  await (await page.waitForFunction(shown, {}, text, tag)).evaluate((element) => element.click());
}

async function colours(page, least) {
  const found = await page.waitForFunction(coloured, { polling: 1000 }, IMAGES, least);
  return found.evaluate(({ count }) => count);
}

drive(async (page, server) => {
  const before = await colours(page, 0); // the images are there
  const field = await page.waitForSelector("#monailabelServerURL");
  await field.click({ count: 3 });
  await field.type(`${server}/`);
  await page.keyboard.press("Tab"); // which takes the address over
  const connected = page.waitForResponse((answer) => answer.url().endsWith("/info/"));
  await field.evaluate((element) => element.closest("tr").querySelector("button").click());
  await connected;
  await press(page, "label", "Auto-Segmentation");
  const answered = page.waitForResponse((answer) => answer.url().includes("/infer/"));
  await press(page, "button", "Run");
  const status = (await answered).status();
  const after = await colours(page, before + 1);
  return { status, before, after, text: await page.evaluate(() => document.body.innerText) };
});
