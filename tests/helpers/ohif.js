// Opens a study in OHIF as a person would: lays its segmentation over the images, picks a segment of it in the panel,
// which leads to the slice in its middle, and takes a picture.
//
//   node ohif.js CHROMIUM PROFILE_FOLDER ADDRESS SEGMENT PICTURE.png
//
// Prints as JSON the names of the segments, the text at the edges of the images, where on the picture the images are
// (left, top, width and height in pixels), and addresses of elsewhere that were asked for. See browser.js.
"use strict";

const { drive, coloured } = require("./browser");

const ROWS = '[data-cy="data-row"]';
const IMAGES = '[data-cy="viewport-pane"] canvas';

drive(async (page, segment) => {
  await (await page.waitForSelector('[data-cy="study-browser-thumbnail-no-image"]')).click({ count: 2 });
  await (await page.waitForSelector('[data-cy^="panelSegmentation"][data-cy$="-btn"]')).click();
  await (await page.waitForSelector(`${ROWS} ::-p-text(${segment})`)).click();
  await page.waitForFunction(coloured, { polling: 400 }, IMAGES, 1);
  const text = (selector) => page.$$eval(selector, (found) => found.map((element) => element.innerText));
  const box = await (await page.$(IMAGES)).boundingBox();
  return {
    segments: await text(ROWS),
    overlay: await text('[data-cy^="viewport-overlay"]'),
    box: [box.x, box.y, box.width, box.height],
  };
});
