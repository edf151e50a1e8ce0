// Shows a node's text below its widgets, and turns a node orange whose run did nothing.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const ORANGE = { color: "#8a4b12", bgcolor: "#6b3a0e" };

function show(node, text) {
  let widget = node.widgets?.find((w) => w.name === "facegrad_text");
  if (!widget) {
    widget = ComfyWidgets.STRING(node, "facegrad_text", ["STRING", { multiline: true }], app).widget;
    widget.options.read_only = true;
    widget.serialize = false;
    widget.options.serialize = false;
    if (widget.inputEl) {
      widget.inputEl.readOnly = true;
      widget.inputEl.style.opacity = 0.8;
    }
  }
  widget.value = text;
  const size = node.computeSize();
  node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
}

app.registerExtension({
  name: "facegrad.nodes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Facegrad")) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text?.length) show(this, output.text.join("\n"));
      const warned = Boolean(output?.facegrad_warning?.[0]);
      if (warned && !this.facegradOwnColours) {
        this.facegradOwnColours = { color: this.color, bgcolor: this.bgcolor };
        Object.assign(this, ORANGE);
      } else if (!warned && this.facegradOwnColours) {
        Object.assign(this, this.facegradOwnColours);
        this.facegradOwnColours = undefined;
      }
      this.setDirtyCanvas?.(true, true);
    };
  },
});
