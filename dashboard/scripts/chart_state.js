// Tells Python how a viewer has zoomed a chart and which entries of its legend are hidden.
// data.within: the key of the container with the charts, which is watched because they are drawn anew with new data.
const WAIT = 350 // ms without a further change, so that a series of clicks is told once

function rangesIn(event, plot) {
    const found = {}
    for (const axis of ["xaxis", "yaxis"]) {
        if (event[`${axis}.autorange`]) {
            found[axis[0]] = null
        } else if (`${axis}.range[0]` in event || `${axis}.range` in event) {
            const {type, range} = plot._fullLayout[axis]
            found[axis[0]] = range.map(end => type === "log" ? 10 ** end : Number(end))
        }
    }
    if (event.dragmode) found.drag = event.dragmode
    return found
}

function entriesOf(plot) {
    const entries = hidden => plot.data
        .filter(trace => trace.legendgroup && (trace.visible === "legendonly") === hidden)
        .map(trace => trace.legendgroup)
    return {hidden: [...new Set(entries(true))], shown: [...new Set(entries(false))]}
}

export default function ({data, setTriggerValue}) {
    const container = document.querySelector(`.st-key-${data.within}`)
    const known = new WeakSet()
    let moved = {}, timer

    const tell = change => {
        if (!Object.keys(change).length) return
        moved = {...moved, ...change}
        clearTimeout(timer)
        timer = setTimeout(() => {
            const told = moved
            moved = {}
            setTriggerValue("moved", told)
        }, WAIT)
    }
    const attach = () => {
        for (const plot of container.querySelectorAll(".js-plotly-plot")) {
            if (!plot.on || known.has(plot)) continue
            known.add(plot)
            plot.on("plotly_relayout", event => tell(rangesIn(event, plot)))
            plot.on("plotly_restyle", ([change]) => "visible" in change && tell(entriesOf(plot)))
        }
    }
    const watch = new MutationObserver(attach)
    watch.observe(container, {childList: true, subtree: true})
    attach()
    return () => {
        watch.disconnect()
        clearTimeout(timer)
    }
}
