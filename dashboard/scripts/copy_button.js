// A button that copies data.text and says so.
async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text)
    const area = document.createElement("textarea") // a page that is neither local nor https has no clipboard
    area.value = text
    document.body.append(area)
    area.select()
    document.execCommand("copy")
    area.remove()
}

export default function ({data, parentElement}) {
    const button = parentElement.querySelector("button")
    button.textContent = data.label
    button.onclick = async () => {
        await copy(data.text)
        button.textContent = "Copied"
        setTimeout(() => { button.textContent = data.label }, 2000)
    }
}
