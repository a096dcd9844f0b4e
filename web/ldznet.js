/**
 * The picture in Preview Segmentation and in the segmenting nodes, live: threshold, opacity, phrases and grow act at once,
 * on the soft maps that the last run sent. Uses registerExtension, nodeCreated, loadedGraphNode, addDOMWidget and "executed".
 */
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { grown, over, overlaid, state } from "./live.js"

const NODES = ["LDZNetPreview", "LDZNetSegment", "LDZNetSegmentCaptured", "LDZNetDetail", "LDZNetSteered"]
const KEY = "ldznet"  // of what a run sends, and of the property that keeps the names of its files
const TICK = 120  // milliseconds between two looks at the widgets: those of a subgraph change with no callback
const EMPTY = 20, PICTURE = 200, ROW = 20  // pixels: of a node that has run nothing yet, of a picture, of a legend's line
const STYLE = "display:flex;flex-direction:column;gap:4px;overflow:hidden;font:12px sans-serif;color:var(--input-text,#ddd)"

const views = new Map()  // node → view

/** The node that an execution id such as "5:3" names; null where this graph has none. */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph, node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null
    graph = node?.subgraph
  }
  return node
}

const url = file => api.apiURL(`/view?${new URLSearchParams(file)}`)

/** Width, height and RGBA of a file that a run left. */
async function pixels(file) {
  const answer = await fetch(url(file))
  if (!answer.ok) throw new Error("gone")
  const image = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" })
  const canvas = new OffscreenCanvas(image.width, image.height)
  const pen = canvas.getContext("2d", { willReadFrequently: true })
  pen.drawImage(image, 0, 0)
  return pen.getImageData(0, 0, image.width, image.height)
}

/** One node's picture and legend. */
class View {
  constructor(node) {
    this.node = node
    this.element = document.createElement("div")
    this.element.style.cssText = STYLE
    this.element.className = "ldznet-live"
    this.canvas = document.createElement("canvas")
    this.canvas.style.cssText = `width:100%;flex:1 1 0;min-height:${PICTURE}px;object-fit:contain;cursor:crosshair`
    this.lines = document.createElement("div")
    this.lines.style.cssText = "flex:none;max-height:40%;overflow:auto"
    this.element.append(this.canvas, this.lines)
    this.canvas.addEventListener("click", event => this.tell(event))
    this.widget = node.addDOMWidget("shown", "LDZNET_SHOWN", this.element, {
      serialize: false, hideOnZoom: false, getMinHeight: () => this.least(),
    })
    this.widget.serialize = false
    this.say("")
  }

  /** Pixels that the node has to leave, at least. */
  least() {
    return this.run ? PICTURE + ROW * (this.run.phrases.length + this.run.notes.length + 1) : EMPTY  // and what a click tells
  }

  /** A line in the place of the picture. */
  say(text) {
    this.canvas.hidden = !!text || !this.images
    this.lines.textContent = text
  }

  widgetOf(name) {
    return this.node.widgets?.find(widget => widget.name === name)?.value
  }

  /** What the widgets say now. */
  settings() {
    let threshold = this.widgetOf("threshold") ?? -1
    if (threshold < 0) threshold = this.followed() ?? this.run.threshold
    const wanted = String(this.widgetOf("phrases") ?? "").split(",").map(part => part.trim().toLowerCase()).filter(Boolean)
    const on = this.run.phrases.map((phrase, p) =>
      !wanted.length || wanted.includes(String(p + 1)) || wanted.includes(phrase.text.toLowerCase()))
    return { threshold, on, opacity: this.widgetOf("opacity") ?? 0.6, grow: this.widgetOf("grow") ?? 0, image: this.image }
  }

  /** The threshold of the node that segmented, as it stands there now, where that is linked directly. */
  followed() {
    const slot = this.node.findInputSlot?.("segmentation") ?? -1
    const source = slot < 0 ? null : this.node.getInputNode?.(slot)
    return NODES.includes(source?.comfyClass) ? source.widgets?.find(widget => widget.name === "threshold")?.value : null
  }

  /** Takes what a run sent, and keeps the names of its files in the workflow. */
  async take(run) {
    this.run = run
    this.node.properties[KEY] = run
    this.image = Math.min(this.image ?? 0, run.pictures.length - 1)
    this.images = null
    try {
      this.images = await Promise.all(run.pictures.map(async (file, i) => {
        const [picture, ...packed] = await Promise.all([file, ...run.maps[i]].map(pixels))
        const maps = run.phrases.map((_, p) => {
          const { data } = packed[Math.floor(p / 3)]
          return Uint8Array.from({ length: data.length / 4 }, (_, at) => data[4 * at + (p % 3)])
        })
        return { picture, maps }
      }))
    } catch {
      if (this.run === run) this.say("The pictures of the last run are gone. Run again.")
      return
    }
    if (this.run !== run) return
    this.drawn = ""
    this.draw()
    const [width, height] = this.node.computeSize()
    this.node.setSize([Math.max(this.node.size[0], width), Math.max(this.node.size[1], height)])
  }

  /** Draws anew where a widget has moved. */
  draw() {
    if (!this.images) return
    const settings = this.settings(), drawn = JSON.stringify(settings)
    if (drawn === this.drawn) return
    this.drawn = drawn
    const { picture, maps } = this.images[this.image], { width, height } = picture
    const radius = settings.grow * width / this.run.size[1]
    this.masks = maps.map((map, p) =>
      settings.on[p] ? grown(over(map, settings.threshold), width, height, radius) : new Uint8Array(map.length))
    const hues = this.run.phrases.map(phrase => phrase.hue)
    const data = overlaid(picture.data, this.masks, hues, settings.opacity, width, height)
    Object.assign(this.canvas, { width, height })
    this.canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0)
    this.canvas.hidden = false
    this.legend(settings)
  }

  /** A line for each phrase, which turns it on and off where the node has a phrases widget. */
  legend(settings) {
    const texts = this.run.phrases.map((phrase, p) => {
      const share = this.masks[p].reduce((sum, inside) => sum + inside, 0) / this.masks[p].length
      const scored = { score: phrase.scores[this.image], found: phrase.found[this.image] }
      return settings.on[p] ? `${phrase.text}: ${state(scored, share, this.run.calibrated)}` : `${phrase.text}: off`
    })
    const rows = texts.map((text, p) => {
      const row = document.createElement("div"), swatch = document.createElement("span")
      swatch.style.cssText = `display:inline-block;width:.8em;height:.8em;margin-right:.5em;background:rgb(${this.run.phrases[p].hue})`
      row.append(swatch, text)
      row.style.opacity = settings.on[p] ? 1 : 0.5
      row.addEventListener("click", () => this.toggle(p, settings.on))
      return row
    })
    const notes = this.run.notes.map(note => Object.assign(document.createElement("div"), { textContent: note }))
    if (this.images.length > 1) notes.unshift(this.pager())
    this.told = document.createElement("div")
    this.lines.replaceChildren(...rows, ...notes, this.told)
  }

  /** Writes the phrases that are on into the node's widget, so that a run does as is shown. */
  toggle(index, on) {
    const widget = this.node.widgets?.find(widget => widget.name === "phrases")
    if (!widget) return
    const now = on.map((state, p) => (p === index ? !state : state))
    if (!now.some(Boolean)) return
    widget.value = now.every(Boolean) ? "" : now.map((state, p) => (state ? p + 1 : 0)).filter(Boolean).join(", ")
    widget.callback?.(widget.value)
    this.draw()
  }

  /** Of several pictures, which. */
  pager() {
    const row = document.createElement("div"), count = this.images.length
    for (const [text, step] of [["‹ ", count - 1], [`${this.image + 1} / ${count}`, 0], [" ›", 1]]) {
      const part = Object.assign(document.createElement("a"), { textContent: text })
      part.style.cursor = "pointer"
      part.addEventListener("click", () => { this.image = (this.image + step) % count; this.draw() })
      row.append(part)
    }
    return row
  }

  /** Phrase, probability and score at the point that was clicked. */
  tell(event) {
    const { width, height } = this.canvas, box = this.canvas.getBoundingClientRect()
    const scale = Math.min(box.width / width, box.height / height)
    const x = Math.floor((event.clientX - box.left - (box.width - width * scale) / 2) / scale)
    const y = Math.floor((event.clientY - box.top - (box.height - height * scale) / 2) / scale)
    if (x < 0 || y < 0 || x >= width || y >= height) return
    const found = this.run.phrases.map((phrase, p) => [this.images[this.image].maps[p][y * width + x] / 255, phrase])
    found.sort((one, other) => other[0] - one[0])
    const parts = found.slice(0, 3).map(([probability, phrase]) =>
      `${phrase.text} ${probability.toFixed(2)} (score ${phrase.scores[this.image].toFixed(2)})`)
    this.told.textContent = `at ${x}, ${y}: ${parts.join(", ")}`
  }
}

app.registerExtension({
  name: "ldznet.live",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const run = detail.output?.[KEY]?.[0]
      if (run?.pictures) views.get(nodeOf(detail.display_node ?? detail.node))?.take(run)
    })
    setInterval(() => views.forEach((view, node) => (node.graph ? view.draw() : null)), TICK)
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    views.set(node, new View(node))
    const removed = node.onRemoved
    node.onRemoved = function () {
      views.delete(node)
      return removed?.apply(this, arguments)
    }
  },
  loadedGraphNode(node) {
    const run = node.properties?.[KEY]
    if (run) views.get(node)?.take(run)
  },
})
