// The grid of 256 cells: one tab stop, arrow keys inside (the grid pattern of WAI-ARIA).

import { count, element, write } from "./words.js";

const SIDE = 16;
const PART = {
  available: (c) => c[1] + c[2],
  working: (c) => c[2],
  held: (c) => c[3],
  offline: (c) => c[4],
};
const COLOUR = { available: "--ready", working: "--working", held: "--held", offline: "--offline" };

export class Cells {
  constructor(grid, shade, scale, open) {
    this.grid = grid;
    this.shade = shade;
    this.scale = scale;
    this.counts = [];
    this.cells = [];
    for (let row = 0; row < SIDE; row += 1) {
      const line = element("div", { role: "row" });
      for (let column = 0; column < SIDE; column += 1) {
        const number = row * SIDE + column;
        const cell = element("div", { role: "gridcell", class: "cell", tabindex: number ? -1 : 0 });
        cell.dataset.name = number.toString(16).padStart(2, "0");
        this.cells.push(cell);
        line.append(cell);
      }
      grid.append(line);
    }
    grid.addEventListener("keydown", (event) => this.#key(event, open));
    grid.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) {
        this.#focus(this.cells.indexOf(cell));
        open(cell.dataset.name);
      }
    });
    shade.addEventListener("change", () => this.draw(this.counts));
  }

  #key(event, open) {
    const at = this.cells.indexOf(event.target);
    if (at < 0) return;
    const column = at % SIDE;
    const moves = {
      ArrowRight: column < SIDE - 1 ? at + 1 : at,
      ArrowLeft: column > 0 ? at - 1 : at,
      ArrowDown: at + SIDE < SIDE * SIDE ? at + SIDE : at,
      ArrowUp: at >= SIDE ? at - SIDE : at,
      Home: event.ctrlKey ? 0 : at - column,
      End: event.ctrlKey ? SIDE * SIDE - 1 : at - column + SIDE - 1,
    };
    if (event.key === "Enter" || event.key === " ") open(event.target.dataset.name);
    else if (event.key in moves) this.#focus(moves[event.key]);
    else return;
    event.preventDefault();
  }

  #focus(at) {
    for (const cell of this.cells) if (cell.tabIndex === 0) cell.tabIndex = -1;
    this.cells[at].tabIndex = 0;
    this.cells[at].focus();
  }

  draw(counts) {
    this.counts = counts;
    const by = this.shade.value, colour = `var(${COLOUR[by]})`;
    this.scale.style.background = `linear-gradient(to right, var(--panel), ${colour})`;
    counts.forEach((cell, number) => {
      const node = this.cells[number];
      const [cars, ready, working, held, offline] = cell;
      const says = cars
        ? `cell ${node.dataset.name}: ${count(cars)} cars, ${ready} ready, ${working} working, ${held} held, ${offline} offline`
        : `cell ${node.dataset.name}: no car`;
      if (node.getAttribute("aria-label") !== says) {
        node.setAttribute("aria-label", says);
        node.title = says;
      }
      node.classList.toggle("some", cars > 0);
      const part = cars ? Math.round((100 * PART[by](cell)) / cars) : 0;
      const fill = cars ? `color-mix(in srgb, ${colour} ${part}%, var(--panel))` : "";
      if (node.dataset.fill !== fill) {
        node.dataset.fill = fill;
        node.style.background = fill;
      }
      write(node, "");
    });
  }
}
